//! What RFC 4787, 5382, 5508 and 7857 require of a NAT, one test for each requirement, named by its number; docs/RFC.md lists
//! all of them. Each has a lab of its own (topology `masquerade`) and a gateway with one masquerade for each family.
//!
//! Hosts are played by [`wire`]: packets go out as the test has made them, and are looked at as they arrive, so that no
//! kernel has a hand in either. Where a real host's part is of interest, sockets of the lab's nodes are used instead.
//!
//! With `GATUN_RFC_AGAINST=nftables` the gateway is the kernel's own NAT, which shows what a requirement's test says of one
//! that does not meet it.

mod net;
mod wire;

mod icmp;
mod icmp_errors;
mod stun;
mod tcp;
mod tcp_open;
mod udp;
mod udp_fragments;
mod updates;
