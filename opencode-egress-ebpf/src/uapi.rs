//! What the programs need of the kernel's user-space API, under its own names.

// Address families, <linux/socket.h>.
pub(crate) const AF_INET6: u32 = 10;

// Socket types, <linux/net.h>.
pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;
pub(crate) const SOCK_RAW: u32 = 3;

// Protocols of sockets, <linux/in.h>.
pub(crate) const IPPROTO_ICMP: u32 = 1;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const IPPROTO_UDP: u32 = 17;
pub(crate) const IPPROTO_ICMPV6: u32 = 58;
pub(crate) const IPPROTO_UDPLITE: u32 = 136;
pub(crate) const IPPROTO_RAW: u32 = 255;
/// Its packets are TCP.
pub(crate) const IPPROTO_MPTCP: u32 = 262;

// States of sockets, <linux/tcp.h>. A datagram socket with a peer is "established".
pub(crate) const TCP_ESTABLISHED: u32 = 1;
/// It has sent what opens a connection, and no answer came yet.
pub(crate) const TCP_SYN_SENT: u32 = 2;
pub(crate) const TCP_CLOSE: u32 = 7;
/// The other end has closed, and this one has not; then it has, too.
pub(crate) const TCP_CLOSE_WAIT: u32 = 8;
pub(crate) const TCP_LAST_ACK: u32 = 9;
pub(crate) const TCP_LISTEN: u32 = 10;
/// A request socket, which only an inbound SYN makes.
pub(crate) const TCP_NEW_SYN_RECV: u32 = 12;

// Levels of socket options.
pub(crate) const SOL_SOCKET: i32 = 1;
pub(crate) const SOL_IP: i32 = 0;
pub(crate) const SOL_IPV6: i32 = 41;
/// A raw socket's own level, at which IPv6 takes the options on its headers too (`rawv6_setsockopt`).
pub(crate) const SOL_RAW: i32 = 255;

// Options at SOL_SOCKET, <asm-generic/socket.h>.
pub(crate) const SO_REUSEADDR: i32 = 2;
pub(crate) const SO_REUSEPORT: i32 = 15;
pub(crate) const SO_MARK: i32 = 36;

// Options at SOL_IP, <linux/in.h>.
pub(crate) const IP_HDRINCL: i32 = 3;
pub(crate) const IP_OPTIONS: i32 = 4;
pub(crate) const IP_ADD_MEMBERSHIP: i32 = 35;
pub(crate) const IP_UNBLOCK_SOURCE: i32 = 37;
pub(crate) const IP_BLOCK_SOURCE: i32 = 38;
pub(crate) const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
pub(crate) const IP_MSFILTER: i32 = 41;

// Options at SOL_IPV6, <linux/in6.h>.
pub(crate) const IPV6_2292PKTOPTIONS: i32 = 6;
pub(crate) const IPV6_NEXTHOP: i32 = 9;
/// `IPV6_ADD_MEMBERSHIP` by its other name.
pub(crate) const IPV6_JOIN_GROUP: i32 = 20;
pub(crate) const IPV6_JOIN_ANYCAST: i32 = 27;
pub(crate) const IPV6_HDRINCL: i32 = 36;
pub(crate) const IPV6_RTHDR: i32 = 57;

// Options at both.
pub(crate) const MCAST_JOIN_GROUP: i32 = 42;
pub(crate) const MCAST_BLOCK_SOURCE: i32 = 43;
pub(crate) const MCAST_UNBLOCK_SOURCE: i32 = 44;
pub(crate) const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
pub(crate) const MCAST_MSFILTER: i32 = 48;

// Ethertypes, <linux/if_ether.h>.
pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;

/// `LOOPBACK_IFINDEX`: the loopback interface's index, in every network namespace.
pub(crate) const LOOPBACK_IFINDEX: u32 = 1;

/// `BPF_F_MMAPABLE`, <linux/bpf.h>: the map can be mapped into memory.
pub(crate) const BPF_F_MMAPABLE: usize = 1 << 10;
/// `BPF_F_NO_PREALLOC`: the map's memory is what its entries take.
pub(crate) const BPF_F_NO_PREALLOC: usize = 1;

/// `BPF_F_CURRENT_NETNS`, <linux/bpf.h>: sockets of the network namespace of the program's own.
pub(crate) const BPF_F_CURRENT_NETNS: u64 = -1_i64 as u64;

/// `BPF_SK_STORAGE_GET_F_CREATE`, <linux/bpf.h>: a socket without a value gets one, all zeros.
pub(crate) const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;

/// The number of `bpf_set_retval`, <linux/bpf.h>.
pub(crate) const BPF_FUNC_SET_RETVAL: usize = 187;
/// No error has a greater number, <linux/err.h>.
pub(crate) const MAX_ERRNO: u32 = 4095;
