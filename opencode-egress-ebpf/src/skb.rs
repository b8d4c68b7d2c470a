//! A packet's bytes and its socket.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use opencode_egress_common::{
    packet::{Bytes, Packet, ipv4, ipv6},
    reason::DropReason,
};

use crate::{
    opaque::opaque,
    sk::{FullSk, Sk},
    uapi::{ETH_P_IP, ETH_P_IPV6, SOCK_STREAM},
};

/// A packet in the kernel.
pub(crate) struct Skb(pub(crate) SkBuffContext);

impl Skb {
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.0.as_ptr().cast()
    }

    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { (*self.raw()).ifindex }
    }

    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // SAFETY: the kernel's context, valid while the program runs; `protocol` is in network order.
        u16::from_be(unsafe { (*self.raw()).protocol } as u16)
    }

    /// Tells the program that goes on with this packet under which generation its flow was found to open TLS. The kernel keeps what others
    /// have in this place and gives each program zeros, where that program itself writes there (`__bpf_prog_run_save_cb`,
    /// <https://github.com/torvalds/linux/blob/v6.12/include/linux/filter.h>): so nobody else can have said it.
    #[inline(always)]
    pub(crate) fn opens_tls_under(&self, generation: u32) {
        // SAFETY: the kernel's context, valid while the program runs, whose control block it may write.
        unsafe { (&raw mut (*self.raw()).cb[0]).write_volatile(generation) };
    }

    /// What [`Skb::opens_tls_under`] was told; 0 for nothing, which is no policy's generation.
    #[inline(always)]
    pub(crate) fn tls_generation(&self) -> u32 {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { (&raw const (*self.raw()).cb[0]).read_volatile() }
    }

    /// Reads the headers. A packet whose version is not what its socket family says is unreadable.
    #[inline(always)]
    pub(crate) fn read(&self) -> Result<Packet, DropReason> {
        match self.ethertype() {
            ETH_P_IP => ipv4(self),
            ETH_P_IPV6 => ipv6(self),
            _ => Err(DropReason::UnreadableHeader),
        }
    }

    /// Reads the headers of a plain packet, which are where they mostly are ([`Linear`]). `None`: it is another one, or none.
    #[inline(always)]
    pub(crate) fn read_plain(&self) -> Option<Packet> {
        let packet = match self.ethertype() {
            ETH_P_IP => ipv4(&Linear(self)),
            ETH_P_IPV6 => ipv6(&Linear(self)),
            _ => return None,
        };
        packet.ok()
    }

    /// The packet's socket.
    #[inline(always)]
    pub(crate) fn socket(&self) -> Option<Sk> {
        // SAFETY: the kernel's context, valid while the program runs.
        Sk::new(unsafe { (*self.raw()).__bindgen_anon_2.sk })
    }

    /// The packet's socket, if that is a full one.
    #[inline(always)]
    pub(crate) fn full_socket(&self) -> Option<FullSk> {
        // SAFETY: the helper takes any socket.
        FullSk::new(unsafe { bpf_sk_fullsock(self.socket()?.as_ptr()) })
    }

    /// Whether its socket is a stream's.
    #[inline(always)]
    pub(crate) fn is_of_stream(&self) -> bool {
        self.full_socket().is_some_and(|sk| sk.kind() == SOCK_STREAM)
    }

    /// Whether a datagram has its socket's own port for a source, as everything has that was not wrapped into
    /// another datagram on its way.
    #[inline(always)]
    pub(crate) fn is_from_its_port(&self, packet: &Packet) -> bool {
        self.socket().is_some_and(|sk| sk.port() == packet.source_port)
    }
}

/// What of a packet is linear in memory and at constant offsets: enough for a plain one.
pub(crate) struct Linear<'a>(pub(crate) &'a Skb);

impl Bytes for Linear<'_> {
    #[inline(always)]
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        // SAFETY: the kernel's context; `data` and `data_end` bound the packet's linear part, and the
        // verifier checks that what is read lies between them. It refuses a misaligned load where the
        // architecture has none.
        unsafe {
            let skb = self.0.raw();
            let data = (*skb).data as usize;
            (data + OFFSET + N * 4 <= (*skb).data_end as usize).then(|| *((data + OFFSET) as *const [u32; N]))
        }
    }

    #[inline(always)]
    fn far<const N: usize>(&self, _offset: usize) -> Option<[u32; N]> {
        None
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        // Otherwise headers are in fragments of the buffer.
        Linear(self).near::<OFFSET, N>().or_else(|| self.far(OFFSET))
    }

    #[inline(always)]
    fn far<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // Of zeros the compiler makes a loop, a turn for each byte; and with none Linux 5.10 does not compile `packet::read`, whose jumps
        // its twenty passes do not settle.
        let mut index = 0;
        while index < N {
            // SAFETY: a word of the array.
            unsafe { words.as_mut_ptr().cast::<u32>().add(index).write_volatile(0) };
            index += 1;
        }
        // SAFETY: the destination is on the stack and N words long, which are initialised.
        unsafe {
            let size = size_of::<[u32; N]>() as u32;
            let result =
                bpf_skb_load_bytes(self.raw().cast(), offset as u32, words.as_mut_ptr().cast(), size);
            (result == 0).then(|| words.assume_init())
        }
    }
}

/// Whether a TCP segment carries more than headers, or may, or has one of these flags. (A function of its own, for the verifier has less to keep
/// apart.)
#[inline(never)]
pub(crate) fn carries<const FLAGS: u8>(skb: &Skb) -> u32 {
    let bytes = Linear(skb);
    let (header, word) = match skb.ethertype() {
        ETH_P_IP => match bytes.near::<0, 1>() {
            Some([first]) if u32::from_be(first) >> 24 == 0x45 => (20, bytes.near::<32, 1>()),
            _ => return 1,
        },
        _ => match bytes.near::<4, 1>() {
            Some([second]) if u32::from_be(second) >> 8 & 0xff == 6 => (40, bytes.near::<52, 1>()),
            _ => return 1,
        },
    };
    let Some([word]) = word else { return 1 };
    let [length, flags, ..] = word.to_ne_bytes();
    let empty = skb.0.len() <= header + u32::from(length >> 4) * 4 && flags & FLAGS == 0;
    opaque(u32::from(!empty), word)
}
