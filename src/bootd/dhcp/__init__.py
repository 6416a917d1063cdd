"""ProxyDHCP and reservations: wire format, policy, sockets."""
