"""Whether packets were wrapped as the RFCs have it, as scapy and tshark see it; for tunnel_wire.rs.

Usage: encapsulated.py SENT.pcap WRAPPED.pcap GATEWAY SERVER ipip|gue

SENT.pcap has what the client sent, as it came to the gateway's host, WRAPPED.pcap what that host sent on to the
server. scapy builds out of each sent packet what should be on the wire, byte for byte; tshark has to read the same out
of WRAPPED.pcap. Prints how many packets were compared; exit 1 with the first difference.
"""

import subprocess
import sys
from collections import Counter

from scapy.all import IP, IPv6, Raw, RawPcapReader, UDP, conf

conf.verb = 0
GUE_PORT = 6080
GUE_HEADER = 4
# By the version of the inner packet.
PROTOCOL = {4: 4, 6: 41}


def packets(path):
    return [data for data, _ in RawPcapReader(path)]


def parse(data):
    return (IP if data[0] >> 4 == 4 else IPv6)(data)


def is_tunnel(packet):
    """Of this tunnel's ends; neighbour discovery and other servers' packets are not."""
    return packet.src == GATEWAY and packet.dst == SERVER


def decremented(data):
    """What a forwarder makes of a packet: one less of the time to live, for which scapy sums the header anew."""
    packet = parse(data)
    if packet.version == 4:
        packet.ttl -= 1
        del packet.chksum
    else:
        packet.hlim -= 1
    return bytes(packet)


def expected_around(inner_data, seen):
    """The whole packet; `seen` is consulted for what may be chosen freely."""
    inner = parse(inner_data)
    ttl = inner.ttl if inner.version == 4 else inner.hlim
    tos = inner.tos if inner.version == 4 else inner.tc
    protocol = PROTOCOL[inner.version]
    payload = Raw(inner_data)
    if GUE:
        udp = seen[UDP]
        if not 49152 <= udp.sport:
            fail(f"source port {udp.sport} of GUE is not of the ephemeral range (RFC 6335)")
        payload = UDP(sport=udp.sport, dport=GUE_PORT) / Raw(bytes([0, protocol, 0, 0]) + inner_data)
        if seen.version == 4 and udp.chksum == 0:
            payload.chksum = 0
        protocol = 17
    # The outer header has the TTL that the inner one has after it was forwarded, as IPVS does it; the kernel's own turn
    # of forwarding the wrapped packet is made up for.
    if seen.version == 6:
        return bytes(IPv6(src=GATEWAY, dst=SERVER, hlim=ttl, tc=tos, fl=seen.fl, nh=protocol) / payload)
    df = inner.version == 6 or inner.flags.DF
    return bytes(
        IP(
            src=GATEWAY,
            dst=SERVER,
            ttl=ttl,
            tos=tos,
            flags="DF" if df else 0,
            # RFC 6864: what cannot be fragmented needs no identification.
            id=0 if df else seen.id,
            proto=protocol,
        )
        / payload
    )


def fail(text):
    print(text)
    sys.exit(1)


def inner_of(data):
    header = 20 if data[0] >> 4 == 4 else 40
    return data[header + (8 + GUE_HEADER if GUE else 0) :]


def compare_with_scapy(sent, wrapped):
    left = Counter(decremented(data) for data in sent)
    ids = []
    for data in wrapped:
        seen = parse(data)
        inner = inner_of(data)
        if not left[inner]:
            fail(f"nobody sent what is in {seen.summary()}:\n{inner.hex()}")
        left[inner] -= 1
        expected = expected_around(inner, seen)
        if data != expected:
            fail(f"on the wire\n{data.hex()}\nscapy has\n{expected.hex()}\n{seen.show(dump=True)}")
        if seen.version == 4 and not seen.flags.DF:
            ids.append(seen.id)
    if len(set(ids)) != len(ids):
        fail(f"identifications repeat: {ids}")
    missing = [inner for inner, count in left.items() if count]
    if missing:
        fail(f"{len(missing)} packets were not wrapped, first {parse(missing[0]).summary()}")


def tshark(path, *arguments):
    command = ["tshark", "-n", "-r", path, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    command += ["-o", "tcp.check_checksum:TRUE", "-o", "tcp.desegment_tcp_streams:FALSE", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        fail(f"{' '.join(command)}: {result.stderr}")
    return result.stdout.splitlines()


def compare_with_tshark(path, wrapped):
    """Every layer of every packet: addresses, protocols, DF, TOS and TTL, outermost first."""
    mine = "ip.src==" if ":" not in GATEWAY else "ipv6.src=="
    only = f"{mine}{GATEWAY} && {mine.replace('src', 'dst')}{SERVER}"
    bad = "ip.checksum.status==0 || udp.checksum.status==0 || tcp.checksum.status==0 || _ws.malformed"
    bad = tshark(path, "-Y", f"({only}) && ({bad})")
    if bad:
        fail("tshark finds wrong checksums or malformed packets:\n" + "\n".join(bad))
    fields = ["ip.src", "ip.dst", "ip.proto", "ip.flags.df", "ip.dsfield", "ip.ttl"]
    fields += ["ipv6.src", "ipv6.dst", "ipv6.nxt", "ipv6.tclass", "ipv6.hlim", "udp.dstport"]
    options = [word for field in fields for word in ("-e", field)]
    lines = tshark(path, "-Y", only, "-T", "fields", "-E", "occurrence=a", *options)
    if len(lines) != len(wrapped):
        fail(f"tshark reads {len(lines)} packets, scapy {len(wrapped)}")
    for line, data in zip(lines, wrapped):
        expected = read_by_scapy(data)
        if line.split("\t") != expected:
            fail(f"tshark reads\n{line.split()}\nscapy\n{expected}\n{data.hex()}")


def read_by_scapy(data):
    layers = [parse(data)]
    # tshark 4.0 does not know GUE; there it reads the outer layer only.
    if not GUE:
        layers.append(parse(inner_of(data)))
    ip = [layer for layer in layers if layer.version == 4]
    ip6 = [layer for layer in layers if layer.version == 6]
    udp = [layer[UDP] for layer in layers if UDP in layer][-1:]
    columns = [
        [layer.src for layer in ip],
        [layer.dst for layer in ip],
        [str(layer.proto) for layer in ip],
        [str(int(layer.flags.DF)) for layer in ip],
        [f"0x{layer.tos:02x}" for layer in ip],
        [str(layer.ttl) for layer in ip],
        [layer.src for layer in ip6],
        [layer.dst for layer in ip6],
        [str(layer.nh) for layer in ip6],
        [f"0x{layer.tc:08x}" for layer in ip6],
        [str(layer.hlim) for layer in ip6],
        [str(layer.dport) for layer in udp],
    ]
    return [",".join(column) for column in columns]


SENT, WRAPPED, GATEWAY, SERVER, KIND = sys.argv[1:]
GUE = KIND == "gue"
VIPS = ("203.0.113.10", "2001:db8:f::10")
SENT_PACKETS = [data for data in packets(SENT) if parse(data).dst in VIPS]
WRAPPED_PACKETS = [data for data in packets(WRAPPED) if is_tunnel(parse(data))]
compare_with_scapy(SENT_PACKETS, WRAPPED_PACKETS)
compare_with_tshark(WRAPPED, WRAPPED_PACKETS)
print(len(WRAPPED_PACKETS))
