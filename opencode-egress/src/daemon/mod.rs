//! The daemon: it confines units to their policies, keeps them confined, and logs what is denied to them.
//!
//! [`Daemon`] is plain and synchronous; [`serve`] runs it.

mod asked;
mod confinement;
mod connections;
mod denials;
mod error;
mod fold;
mod last_applied;
mod leases;
pub mod names;
mod policies;
mod predecessor;
pub mod serve;
mod start;
mod state;
mod watched;
mod why;

pub use error::DaemonError;
pub use state::Daemon;
