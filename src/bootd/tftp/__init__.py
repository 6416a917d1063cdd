"""TFTP read transfers: wire format, state machine, sockets."""
