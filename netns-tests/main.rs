//! End-to-end tests: real programs, talking through gatun, in network namespaces.
//!
//! Each scenario makes a lab of its own (`scripts/lab`, under a name prefix of its own), so they run in parallel; each is
//! one file; those of [`services`] share what a cluster has to bear. [`lab`] is the lab and what runs in it, [`gateway`]
//! the gatun under test, [`report`] what is left of a scenario that failed, and how one is skipped.
//!
//! They need root (or a user namespace in which the whole test run is root) and /dev/net/tun.

mod capture;
mod client;
mod encapsulator;
mod flow_line;
mod gateway;
mod lab;
mod one_way;
mod process;
mod report;
mod servers;
#[path = "../tests/support/mod.rs"]
mod support;

mod bulk;
mod cleanup;
mod cli;
mod conntrack;
mod direct;
mod dns;
mod drain;
mod flood;
mod forged;
mod fragments;
mod ftp;
mod ftp_pools;
mod fullnat;
mod health;
mod health_path;
mod icmp_errors;
mod ipvsadm;
mod lab_script;
mod local_vip;
mod manage;
mod manage_names;
mod masquerade;
mod metrics;
mod mixed;
mod mss;
mod no_server;
mod passive;
mod ping;
mod pmtu;
mod ports;
mod proxy_protocol;
mod real_server;
mod refused_reload;
mod reload;
mod rfc;
mod same_ports;
mod segment_vip;
mod server_stopped;
mod services;
mod spread;
mod syn_proxy;
mod tap;
mod tap_down;
mod tap_methods;
mod tftp;
mod tunnel;
mod tunnel_pmtu;
mod tunnel_wire;
mod two_gateways;
