//! What is confined: when a unit asks, when it did not, and what is left of it.

mod attach;
mod numbers;
pub(in crate::daemon) mod outlived;
mod status;
mod upkeep;
