//! What is confined: when a unit asks, when it did not, and what is left of it.

mod attach;
pub(in crate::daemon) mod gone;
pub(in crate::daemon) mod limits;
mod numbers;
mod outlived;
mod status;
mod upkeep;
