//! The classic services of a cluster, with the real daemons, by each of the methods: one file a service. [`common`] is what
//! all of them have to bear, [`load`] the clients that meanwhile ask, [`wire`] what these say, [`flows`] which server the
//! gateway sent each of them to.

mod common;
mod flows;
mod load;
mod wire;

mod dns;
mod ftp;
mod mail;
mod news;
mod proxy;
mod web;
