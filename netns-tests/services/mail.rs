//! Mail: postfix takes it over SMTP, dovecot gives it to its reader over IMAP.

use std::fs;
use std::os::unix::fs::chown;

use anyhow::{Context, Result, ensure};

use super::common::{Cluster, Method, Plan, Service, daemon, run, utf8, write_file};
use super::wire::{Protocol, Wire};
use crate::lab::Lab;
use crate::process::eventually;
use crate::servers::VIPS;

/// Whoever the mailbox belongs to: nobody.
const OWNER: u32 = 65534;

fn plan() -> Plan {
    Plan {
        needs: &["postfix", "dovecot", "swaks", "curl"],
        services: vec![
            Service { name: "smtp", port: Some(25), protocol: "tcp", check: "type = \"smtp\"", keys: "" },
            Service { name: "imap", port: Some(143), protocol: "tcp", check: "type = \"tcp\"", keys: "" },
        ],
        protocols: |_, _| {
            Ok(vec![
                Protocol::tcp("smtp", 25, greet_smtp, |wire| wire.command("NOOP", "250").map(|_| wire.server.clone())),
                Protocol::tcp("imap", 143, greet_imap, |wire| {
                    imap(wire, "NOOP")?;
                    Ok(wire.server.clone())
                }),
            ])
        },
        start,
        healthy,
    }
}

fn greet_smtp(wire: &mut Wire) -> Result<()> {
    // 220 rs1.mail.test ESMTP
    let banner = wire.reply("220")?;
    wire.server = banner[3..].trim_start().split('.').next().unwrap_or_default().to_string();
    wire.command("EHLO client.test", "250").map(drop)
}

fn greet_imap(wire: &mut Wire) -> Result<()> {
    // * OK [CAPABILITY IMAP4rev1 …] rs1 ready
    let banner = wire.line()?;
    ensure!(banner.starts_with("* OK"), "{banner}");
    wire.server = banner.trim_end_matches(" ready").rsplit(' ').next().unwrap_or_default().to_string();
    imap(wire, "LOGIN box password")
}

/// A command, and the lines up to its end.
fn imap(wire: &mut Wire, command: &str) -> Result<()> {
    wire.send(format!("a {command}\r\n").as_bytes())?;
    loop {
        let line = wire.line()?;
        if let Some(outcome) = line.strip_prefix("a ") {
            ensure!(outcome.starts_with("OK"), "{command}: {line}");
            return Ok(());
        }
    }
}

fn start(lab: &Lab, _: Method, node: &str) -> Result<()> {
    let work = utf8(&lab.path(node))?;
    let mailbox = lab.path(node).join("mail");
    if !mailbox.exists() {
        fs::create_dir_all(&mailbox)?;
        chown(&mailbox, Some(OWNER), Some(OWNER))?;
    }
    postfix(lab, node, &work)?;
    dovecot(lab, node, &work)
}

fn postfix(lab: &Lab, node: &str, work: &str) -> Result<()> {
    // No process in a chroot: its resolver's files would have to be copied there.
    let master = "smtp inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";
    let main = format!(
        "compatibility_level = 3.6
config_directory = {work}
queue_directory = {work}/queue
data_directory = {work}/postfix
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = {node}.mail.test
smtpd_banner = $myhostname ESMTP
inet_interfaces = all
inet_protocols = all
smtpd_peername_lookup = no
mynetworks = 127.0.0.0/8
mydestination =
local_recipient_maps =
alias_maps =
virtual_mailbox_domains = mail.test
virtual_mailbox_base = {work}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{OWNER}
virtual_gid_maps = static:{OWNER}
maillog_file = {work}/postfix.log
maillog_file_prefixes = {work}
"
    );
    write_file(lab, node, "master.cf", master)?;
    write_file(lab, node, "main.cf", &main)?;
    // "quick-start" saves postfix from looking through its directories, which takes longer than all the rest.
    let script = format!(
        "cd {work}
         install -d queue queue/pid
         install -d -o postfix -m 700 postfix
         cd queue
         install -d -o postfix -m 700 active bounce corrupt defer deferred flush hold incoming private saved trace
         install -d -o postfix -g postdrop -m 730 maildrop
         install -d -o postfix -g postdrop -m 710 public
         touch quick-start
         postfix -c {work} start-fg"
    );
    daemon(lab, node, "postfix", &["sh", "-ec", &script])
}

fn dovecot(lab: &Lab, node: &str, work: &str) -> Result<()> {
    let config = format!(
        "base_dir = {work}/dovecot
state_dir = {work}/dovecot
log_path = /dev/stderr
protocols = imap
listen = *, ::
ssl = no
disable_plaintext_auth = no
login_greeting = {node} ready
mail_location = maildir:{work}/mail/box
mail_max_userip_connections = 100
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={OWNER} gid={OWNER} home={work}/mail
}}
# Processes that serve one client after the other.
service imap-login {{
  service_count = 0
  inet_listener imaps {{
    port = 0
  }}
}}
service imap {{
  service_count = 1000
}}
"
    );
    let path = write_file(lab, node, "dovecot.conf", &config)?;
    daemon(lab, node, "dovecot", &["dovecot", "-F", "-c", &path])
}

/// Mail for everybody, three for each server; its reader gets it from each.
fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    let text = write_file(lab, "client", "mail", "Subject: for the box\r\n\r\nby curl\r\n")?;
    for _ in 0..3 {
        let swaks = ["swaks", "--server", VIPS[0], "--from", "me@client.test", "--to", "box@mail.test"];
        let mail = ["--silent", "2", "--helo", "client.test", "--header", "Subject: for the box"];
        lab.run("client", &[&swaks[..], &mail].concat())?.success()?;
        // Debian's swaks speaks IPv6 only with another package.
        let curl = ["curl", "-sSg", "--max-time", "5", "--mail-from", "me@client.test", "--mail-rcpt", "box@mail.test"];
        lab.run("client", &[&curl[..], &["-T", &text, &format!("smtp://{}/client.test", VIPS[1])]].concat())?
            .success()?;
    }
    for server in cluster.method.servers() {
        let delivered = || fs::read_dir(lab.path(server).join("mail/box/new")).map_or(0, Iterator::count);
        eventually("two of six mails", crate::lab::PATIENCE, || delivered() >= 2)
            .with_context(|| format!("{server} delivered {}", delivered()))?;
        ensure!(delivered() == 2, "{server} delivered {}, two are its share", delivered());
    }
    for vip in VIPS {
        for _ in 0..3 {
            let curl = ["curl", "-sSg", "--max-time", "5", "-u", "box:password"];
            let mail =
                lab.run("client", &[&curl[..], &[&format!("imap://{vip}/INBOX;MAILINDEX=1")]].concat())?.success()?;
            ensure!(mail.contains("Subject: for the box"), "{vip}: {mail}");
        }
    }
    Ok(())
}

#[test]
fn by_nat() {
    run(&plan(), Method::Nat);
}

#[test]
fn by_direct() {
    run(&plan(), Method::Direct);
}

#[test]
fn by_tunnel() {
    run(&plan(), Method::Tunnel);
}
