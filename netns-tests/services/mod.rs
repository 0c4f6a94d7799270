//! The classic services of a cluster, with the real daemons, by each of the methods: one file a service. [`common`] is what
//! all of them have to bear, [`load`] the clients that meanwhile ask, [`wire`] what these say, [`watch`] what the gateway
//! tells meanwhile.

mod common;
mod load;
mod watch;
mod wire;

mod dns;
mod ftp;
mod mail;
mod news;
mod proxy;
mod web;
