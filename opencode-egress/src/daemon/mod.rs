//! The daemon: what is confined, by which policy, and what was refused.
//!
//! [`Daemon`] is plain and synchronous; [`serve`] runs it.

mod confinement;
mod denials;
mod error;
mod fold;
mod last_applied;
mod policies;
mod predecessor;
pub mod serve;
mod start;
mod state;

pub use error::DaemonError;
pub use state::Daemon;
