//! Hook tests: real sockets in a confined cgroup, and a second host that witnesses what arrived.
//!
//! Each test makes its own world (`world`): two network namespaces joined by a wire, a cgroup and a policy.
//! A probe (`probe`) tries a technique in that cgroup; the witness (`witness`) says what of it arrived.
//! Every denial is paired with an allowed control, which proves that the technique itself works.
//!
//! They need root, iproute2, nftables and tcpdump, and nothing they send leaves the namespaces.

mod addresses;
mod bpffs;
mod callers;
mod changes;
mod children;
mod decision;
mod ends;
mod errno;
mod events;
mod exec;
mod holders;
mod interpreter;
mod ipsec;
mod joins;
mod leases;
mod limits;
mod listeners;
mod loopback;
mod names;
mod network;
mod numbers;
mod pins;
mod probe;
mod raw;
mod routing;
mod rules;
mod shares;
mod sockets;
mod sys;
mod tcp;
mod tls;
mod udp;
mod uring;
mod verifier;
mod witness;
mod world;

// The compiler's own tests' files, which `decision` shares, find it in their crate.
use opencode_egress::policy;
