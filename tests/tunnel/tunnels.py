"""Tunnelled packets by scapy. `make` prints some in hex, each with the packet in it; `read` reads packets in hex, a line
each, and prints what is in them."""

import logging
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.fields import BitField, ByteField, ShortField
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw, bind_layers


class GUE(Packet):
    name = "GUE"
    fields_desc = [
        BitField("version", 0, 2),
        BitField("control", 0, 1),
        BitField("hlen", 0, 5),
        ByteField("proto", 4),
        ShortField("flags", 0),
    ]


bind_layers(UDP, GUE, dport=6080)
bind_layers(GUE, IP, proto=4)
bind_layers(GUE, IPv6, proto=41)


def packet(data):
    return (IP if data[0] >> 4 == 4 else IPv6)(data)


def make():
    payloads = [TCP(sport=40000, dport=80, flags="PA", seq=7) / Raw(b"x" * 77), UDP(sport=40000, dport=53) / Raw(b"?")]
    inners = [IP(src="198.51.100.2", dst="203.0.113.10", ttl=9, id=99, flags=flags) for flags in ("", "DF")]
    inners.append(IPv6(src="2001:db8:1::2", dst="2001:db8:f::10", hlim=9))
    outers = [IP(src="10.20.0.1", dst="10.30.0.14", id=5), IPv6(src="fd20::1", dst="fd30::14")]
    outers.append(IPv6(src="fd20::1", dst="fd30::14") / IPv6ExtHdrDestOpt())
    for outer in outers:
        for inner in inners:
            for payload in payloads + [ICMP() / Raw(b"ping")]:
                if ICMP in payload and IPv6 in inner:
                    continue
                whole = bytes(inner / payload)
                gue = UDP(sport=50000, dport=6080) / GUE(proto=4 if IP in inner else 41)
                print(bytes(outer / inner / payload).hex(), whole.hex())
                print(bytes(outer / gue / inner / payload).hex(), whole.hex())


def read():
    for line in sys.stdin:
        data = bytes.fromhex(line)
        outer = packet(data)
        names = ":".join(layer.__name__ for layer in outer.layers())
        inner = outer[GUE].payload if GUE in outer else outer.payload
        if IP in outer and outer.version == 4:
            fields = [outer.ttl, outer.tos, outer.id, "DF" if outer.flags.DF else "-"]
        else:
            fields = [outer.hlim, outer.tc, 0, "-"]
        original = bytes(inner)
        # Made anew, lengths and sums are the same. A datagram without a sum stays so.
        layer = outer
        while layer:
            for field in ("chksum", "len", "plen"):
                if field in getattr(layer, "fields", {}) and not (field == "chksum" and layer.chksum == 0):
                    delattr(layer, field)
            # The sum of what is fragmented cannot be made of one fragment.
            if isinstance(layer, IP) and (layer.frag or layer.flags.MF):
                break
            layer = layer.payload
        print(names, outer.src, outer.dst, *fields, original.hex(), "same" if bytes(outer) == data else "different")


{"make": make, "read": read}[sys.argv[1]]()
