"""bootd boots racks of stateless bare-metal machines: ProxyDHCP, TFTP and HTTP in one daemon."""

__version__ = "0.1.0"
