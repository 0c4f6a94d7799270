/* Decapsulation in the kernel of a real server, where that has no ipip module: a tc program at the ingress of its
 * interface. It is the independent other end of gatun's tunnels in the lab, and shares no code with gatun.
 *
 * It takes off IP-in-IP (RFC 2003, RFC 2473: IPv4 or IPv6 in either) and GUE (UDP port 6080, version 0, no flags,
 * as net/ipv4/fou_core.c has it), from the gateway alone (RFC 2003 section 6.2); from anybody else such a packet is
 * dropped. What is left goes up the stack as if it had come bare. All else passes. Checksums are not its business: a
 * partial one is counted from the inner header on, which stays where it is.
 *
 * Built by scripts/lab serve with GATEWAY=N: the gateway is 10.20.0.N and fd20::N.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#define SECTION(name) __attribute__((section(name), used))
#define ALWAYS_INLINE __attribute__((always_inline)) inline
#define BE16(n) __builtin_bswap16(n)
#define BE32(n) __builtin_bswap32(n)

#define GUE_PORT 6080

/* Since Linux 6.3: the packet's protocol follows from what is inside. include/uapi/linux/bpf.h */
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)

static long (*const adjust_room)(struct __sk_buff *, __s32, __u32, __u64) = (void *)BPF_FUNC_skb_adjust_room;
static long (*const store_bytes)(struct __sk_buff *, __u32, const void *, __u32, __u64) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const pull_data)(struct __sk_buff *, __u32) = (void *)BPF_FUNC_skb_pull_data;

struct gue {
    __u8 version_control_length;
    __u8 protocol;
    __be16 flags;
};

/* Takes the outer headers off a packet of Ethernet type `outer`; `protocol` says what is inside. */
static ALWAYS_INLINE int strip(struct __sk_buff *skb, __u16 outer, __s32 length, __u8 protocol)
{
    __u16 inner = BE16(protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6);
    __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

    if (inner != outer)
        flags |= protocol == IPPROTO_IPIP ? DECAP_L3_IPV4 : DECAP_L3_IPV6;
    if (adjust_room(skb, -length, BPF_ADJ_ROOM_MAC, flags) ||
        store_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &inner, sizeof(inner), 0))
        return TC_ACT_SHOT;
    return TC_ACT_OK;
}

/* What follows the outer IP header, which with the Ethernet header takes `offset` bytes. */
static ALWAYS_INLINE int tunnelled(struct __sk_buff *skb, __u16 outer, __u32 offset, __u8 protocol, int trusted)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

    if (protocol == IPPROTO_UDP) {
        struct udphdr *udp = data + offset;
        struct gue *gue = (void *)(udp + 1);

        if ((void *)(gue + 1) > end || udp->dest != BE16(GUE_PORT))
            return TC_ACT_OK;
        if (gue->version_control_length || gue->flags)
            return TC_ACT_SHOT;
        protocol = gue->protocol;
        offset += sizeof(*udp) + sizeof(*gue);
        if (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6)
            return TC_ACT_SHOT;
    }
    if (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6)
        return TC_ACT_OK;
    if (!trusted)
        return TC_ACT_SHOT;
    return strip(skb, outer, offset - sizeof(struct ethhdr), protocol);
}

SECTION("tc")
int decapsulate(struct __sk_buff *skb)
{
    void *data, *end;

    /* As much as the longest headers that are looked at; a shorter packet is as long as it is. */
    pull_data(skb, sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct udphdr) + sizeof(struct gue));
    data = (void *)(long)skb->data;
    end = (void *)(long)skb->data_end;
    if (skb->protocol == BE16(ETH_P_IP)) {
        struct iphdr *ip = data + sizeof(struct ethhdr);

        /* gatun sends no options, and a fragment of a tunnel packet has to be put together first. */
        if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->frag_off & BE16(0x3fff))
            return TC_ACT_OK;
        return tunnelled(skb, skb->protocol, sizeof(struct ethhdr) + sizeof(*ip), ip->protocol,
                         ip->saddr == BE32(0x0a140000 + GATEWAY));
    }
    if (skb->protocol == BE16(ETH_P_IPV6)) {
        struct ipv6hdr *ip = data + sizeof(struct ethhdr);
        __be32 *from;

        if ((void *)(ip + 1) > end)
            return TC_ACT_OK;
        from = ip->saddr.in6_u.u6_addr32;
        return tunnelled(skb, skb->protocol, sizeof(struct ethhdr) + sizeof(*ip), ip->nexthdr,
                         from[0] == BE32(0xfd200000) && !from[1] && !from[2] && from[3] == BE32(GATEWAY));
    }
    return TC_ACT_OK;
}
