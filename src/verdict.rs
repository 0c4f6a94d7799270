//! What the engine answers for a packet, and every reason it may have to drop one.

/// What is to be done with the packet buffer after [`crate::engine::Engine::handle_packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Translated: send it.
    Forward,
    /// Not part of any service or flow: send it on as it came; the host's routing knows better.
    Pass,
    /// The buffer now holds an answer to the sender (an echo reply, a SYN cookie): send it.
    Reply,
    /// The packet was refused for this reason, and the buffer now holds the RST or ICMP error for its sender: send it.
    Refuse(DropReason),
    /// An answer to one of the gateway's own probes, as a client would get it: it goes to the probe, and to no device.
    Deliver,
    /// It belongs to the shard of this number, as it now is: that one is to decide.
    Elsewhere(u16),
    /// The engine keeps a copy (a fragment that waits for its first one); the buffer is free again.
    Held,
    /// Nothing is to be sent.
    Drop(DropReason),
}

impl Verdict {
    /// Whether the buffer is to be written to the device.
    pub const fn sends(self) -> bool {
        !matches!(self, Verdict::Deliver | Verdict::Elsewhere(_) | Verdict::Held | Verdict::Drop(_))
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// Why a packet was not forwarded. Each is a counter, a metric label and a word in `gatun explain`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable word for metrics and outputs.
            pub const fn word(self) -> &'static str {
                match self { $(DropReason::$variant => $word,)+ }
            }

            /// One sentence for an operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The packet ends before its headers do.
    Truncated = "truncated",
    /// The version nibble is neither 4 nor 6.
    NotIp = "not_ip",
    /// An IP header field contradicts the packet (header length, total length, an IPv4-mapped address on the wire), or an
    /// IPv6 routing header has segments left.
    BadIpHeader = "bad_ip_header",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// A TCP, UDP or ICMP header field contradicts the packet (data offset, UDP length, SYN together with FIN or RST).
    BadTransportHeader = "bad_transport_header",
    /// More IPv6 extension headers than the engine walks.
    TooManyExtensionHeaders = "too_many_extension_headers",
    /// The checksum of an ICMP message, or of the IP header it quotes, is wrong (RFC 5508 REQ-3).
    BadIcmpChecksum = "bad_icmp_checksum",
    /// The source cannot be one (multicast, loopback, unspecified), the destination is no single host or the loopback, or both
    /// are the same.
    Martian = "martian",
    /// The VIP is ours, but no service listens on this port.
    NoService = "no_service",
    /// The service has no server that may take a new flow (none configured, all weight 0 or down).
    NoServer = "no_server",
    /// A TCP packet that is no SYN and belongs to no flow.
    NoFlow = "no_flow",
    /// The transport protocol is none that gatun forwards to a VIP.
    UnsupportedProtocol = "unsupported_protocol",
    /// An ICMP message to a VIP that is neither an echo request nor an error about a flow.
    UnsupportedIcmp = "unsupported_icmp",
    /// An ICMP error for a VIP quotes a packet that belongs to no flow.
    IcmpNoFlow = "icmp_no_flow",
    /// The flow table is full, and nothing in it may be evicted.
    TableFull = "table_full",
    /// No free source port was found for a tuple that another flow to the same server holds.
    PortCollision = "port_collision",
    /// The packet's TTL or hop limit ended at the gateway.
    TtlExceeded = "ttl_exceeded",
    /// The first fragment is too short for its transport header, or a later one would overwrite it (RFC 1858, RFC 7112).
    BadFragment = "bad_fragment",
    /// The fragment's first one did not come in time.
    FragmentTimeout = "fragment_timeout",
    /// The table of fragmented packets, or the room for held fragments, is full.
    FragmentTableFull = "fragment_table_full",
    /// The packet is too large for the way to its server, and must not be fragmented; the sender was told what fits.
    TooBig = "too_big",
    /// The server does not answer for its address on the segment (ARP, NDP).
    ServerUnreachable = "server_unreachable",
    /// The link to the server has as many packets waiting as it may have.
    LinkFull = "link_full",
    /// There is no way to the server, so that a tunnel to it has no beginning.
    NoTunnelSource = "no_tunnel_source",
    /// The packet comes from one end of the tunnel that it would go through (RFC 2003 section 3.2).
    TunnelLoop = "tunnel_loop",
    /// What the device says of the packet's checksum or segmentation contradicts the packet.
    BadOffload = "bad_offload",
    /// A packet that came to a tunnel's end is not in a tunnel.
    NotTunnelled = "not_tunnelled",
    /// The outer headers of a tunnelled packet contradict what is in them (family, length, GUE header, UDP checksum).
    BadTunnel = "bad_tunnel",
    /// A fragment of a tunnelled packet came to the tunnel's end, where nothing is put together.
    TunnelFragment = "tunnel_fragment",
    /// Congestion was marked on the outer header of a packet whose transport does not know of ECN (RFC 6040 section 4.2).
    CongestionNotEct = "congestion_not_ect",
    /// It is part of no service and no flow, and there is no host behind the gateway that it could be for (mode "tap").
    NotOurs = "not_ours",
    /// The frame is too short for its headers, or its EtherType does not fit the packet in it.
    BadFrame = "bad_frame",
    /// The frame is tagged (IEEE 802.1Q); the gateway's segment is the untagged one.
    VlanTagged = "vlan_tagged",
    /// The frame is for another host's MAC: a bridge that has not learnt where that is sends it everywhere.
    OtherMac = "other_mac",
    /// The frame is neither IP nor ARP.
    OtherEtherType = "other_ethertype",
    /// A packet in a broadcast or multicast frame: to everybody, so not to the gateway alone.
    LinkBroadcast = "link_broadcast",
    /// An ARP packet that contradicts itself, or is not of Ethernet and IPv4.
    BadArp = "bad_arp",
    /// A neighbour discovery message that came from beyond the segment or is malformed (RFC 4861 section 7.1).
    BadNdp = "bad_ndp",
    /// The frame or what it says of its sender cannot be true: a MAC that is none, two different ones, or the gateway's.
    SpoofedMac = "spoofed_mac",
    /// Another host claims an address of the gateway's or a VIP (RFC 5227 section 2.4).
    AddressConflict = "address_conflict",
    /// The destination is on no segment of the gateway's, and it has no router of that family.
    NoRoute = "no_route",
    /// The neighbour's MAC is not known yet, and too many packets wait for it already.
    NeighbourQueueFull = "neighbour_queue_full",
    /// The neighbour does not answer ARP or NDP.
    NeighbourUnreachable = "neighbour_unreachable",
    /// The neighbour was forgotten in favour of others while packets waited for its MAC.
    NeighbourEvicted = "neighbour_evicted",
    /// A tunnelled packet from somebody else than the gateways that the real server takes packets from.
    UnknownGateway = "unknown_gateway",
    /// A tunnelled packet in an encapsulation that the real server's configuration does not allow.
    TunnelNotAllowed = "tunnel_not_allowed",
    /// The packet inside the tunnel is addressed to none of the real server's VIPs.
    NotOurVip = "not_our_vip",
    /// A packet from outside that claims to be one of the gateway's own probes.
    ProbeForged = "probe_forged",
    /// An answer to a probe that could not be handed to it: too much waits for it already, or it is in fragments.
    ProbeLost = "probe_lost",
    /// A packet of a probe whose flow has ended.
    ProbeEnded = "probe_ended",
    /// A segment of a connection that a helper reads came before the one in front of it, or one for a server that is to be told
    /// whose connection it is and has not answered yet, or a SYN for the very place of one that it was told of; its sender sends
    /// it again.
    TooEarly = "too_early",
    /// A segment that has to be read or rewritten, by a helper or to put something in front of it, cannot be: its checksum is
    /// wrong, it is a fragment, or it would become too long.
    Unreadable = "unreadable",
    /// Every server that could take the new flow has as many as it may have (max_connections).
    ServersFull = "servers_full",
    /// The flow's server is down: both ends of the connection were sent a RST.
    ServerDown = "server_down",
    /// No address of the pool has a free port: none towards the server, or the inside host's one has none left.
    PoolExhausted = "pool_exhausted",
    /// The inside host has as many mappings as it may have (max_mappings).
    SourceLimit = "source_limit",
    /// The address is a pool's, but nobody inside has the port, or nobody who talks to anybody.
    NoMapping = "no_mapping",
    /// The inside host has not sent to whom the packet comes from, and the masquerade's filtering asks for that.
    Filtered = "filtered",
    /// Somebody outside begins more flows with an inside host than that answers.
    Unanswered = "unanswered",
    /// The client has begun as many flows as one may within a second (new_flows_per_client).
    ClientRate = "client_rate",
    /// The service has got as many new flows as it may within a second (new_flows_per_second of the service).
    ServiceRate = "service_rate",
    /// All clients together have begun as many flows as they may within a second (new_flows_per_second of the limits).
    TotalRate = "total_rate",
    /// The gateway has answered the client in its server's name, and the server has not answered yet; the client sends it again.
    NotOpen = "not_open",
    /// A fragment covers bytes of its packet that another one has, or ends it elsewhere (RFC 5722, RFC 1858), or one of the
    /// same packet did.
    OverlappingFragment = "overlapping_fragment",
    /// The packet comes in more fragments than are followed.
    TooManyFragments = "too_many_fragments",
    /// The source is a VIP or an address of a pool: nobody but the gateway sends as that.
    SpoofedSource = "spoofed_source",
    /// The address has no counterpart in the other prefix (RFC 6296 sections 3.2 and 3.7).
    NoPrefixMapping = "no_prefix_mapping",
}

impl DropReason {
    pub const COUNT: usize = DropReason::ALL.len();

    /// Whether something of the gateway's own ran out: a table, ports, servers with room. An operator can give it more.
    pub const fn is_shortage(self) -> bool {
        matches!(
            self,
            DropReason::TableFull
                | DropReason::PortCollision
                | DropReason::FragmentTableFull
                | DropReason::LinkFull
                | DropReason::NeighbourQueueFull
                | DropReason::NeighbourEvicted
                | DropReason::ServersFull
                | DropReason::PoolExhausted
                | DropReason::SourceLimit
        )
    }
}
