//! What `-h` and `-v` print.

/// The version of ipvsadm whose command line this is, and that of IPVS, which scripts look for.
pub const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// The schedulers, as the original lists them.
const SCHEDULERS: &str = "rr|wrr|lc|wlc|lblc|lblcr|dh|sh|sed|nq|fo|ovf|mh";

/// The whole help. `{0}` stands for the program.
const TEXT: &str = "\
Usage:
  {0} -A|E virtual-service [-s scheduler] [-p [timeout]] [-M netmask] [--pe persistence_engine] [-b sched-flags]
  {0} -D virtual-service
  {0} -C
  {0} -R
  {0} -S [-n]
  {0} -a|e virtual-service -r server-address [options]
  {0} -d virtual-service -r server-address
  {0} -L|l [virtual-service] [options]
  {0} -Z [virtual-service]
  {0} --set tcp tcpfin udp
  {0} --start-daemon {master|backup} [daemon-options]
  {0} --stop-daemon {master|backup}
  {0} -h

This is gatun's ipvsadm. It changes the gateway that --control (as the first option) or GATUN_CONTROL
names, else the one of this network namespace; the first service that is added starts one there.
A link makes it the host's own: ln -s $(command -v gatun) /usr/local/sbin/ipvsadm

Commands (each has to be the first option):
  -A, --add-service           add a virtual service
  -E, --edit-service          change the settings of a virtual service
  -D, --delete-service        delete a virtual service
  -C, --clear                 delete every virtual service
  -R, --restore               read commands from standard input, and do them as one change
  -S, --save                  write the rules to standard output, as --restore reads them
  -a, --add-server            add a real server
  -e, --edit-server           change the settings of a real server
  -d, --delete-server         delete a real server
  -L, -l, --list              list the table
  -Z, --zero                  set counters to zero, of one service or of all
  --set tcp tcpfin udp        set the timeouts of connections, in seconds; 0 keeps one
  --start-daemon              start to synchronise connections (not supported yet)
  --stop-daemon               stop it
  -h, --help                  show this
  -v, --version               show the version

A virtual service:
  -t, --tcp-service  host[:port]   a TCP service; port 0 is every port, and needs -p
  -u, --udp-service  host[:port]   a UDP service
  --sctp-service     host[:port]   an SCTP service (not supported yet)
  -f, --fwmark-service mark        packets with a mark (not supported: see `group` in gatun's configuration)

Options:
  -6, --ipv6                  with -f: the service has IPv6 addresses
  -s, --scheduler scheduler   one of {1};
                              wlc by default
  -b, --sched-flags flags     sh-fallback, sh-port, mh-fallback, mh-port, with commas between them
  -p, --persistent [timeout]  clients stay with their server, for 360 seconds by default
  -M, --netmask netmask       the clients that stay together: a mask, or a prefix length for IPv6
  -o, --ops                   every UDP packet is scheduled by itself
  -r, --real-server host[:port]  a real server
  -g, --gatewaying            direct routing (default)
  -i, --ipip                  through a tunnel
  -m, --masquerading          by address translation
  --tun-type type             ipip (default) or gue
  --tun-port port             the port of gue
  --tun-nocsum, --tun-csum    taken; gue has a checksum over IPv6 and none over IPv4
  -w, --weight weight         0 to 65535, 1 by default; 0 takes no new connection
  -x, --u-threshold number    connections at which a server takes no more
  -y, --l-threshold number    connections below which it takes new ones again
  -n, --numeric               addresses and ports as numbers
  -c, --connection            with -L: the connections
  --timeout                   with -L: the timeouts
  --daemon                    with -L: the daemons of synchronisation
  --stats, --rate             with -L: counters, or what goes on per second
  --thresholds                with -L: thresholds
  --persistent-conn           with -L: clients that stay with a server
  --tun-info                  with -L: how tunnels wrap
  --exact                     with -L: numbers in full
  --nosort                    with -L: in the order in which services and servers were added
  --sort                      does nothing
";

/// The help of the program called so.
pub fn text(program: &str) -> String {
    format!("{VERSION}{}", TEXT.replace("{0}", program).replace("{1}", SCHEDULERS))
}
