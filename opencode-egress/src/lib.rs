//! Egress control for headless opencode servers. ARCHITECTURE.md has the way of a packet and of a policy.

pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod compile;
pub mod config;
pub mod confine;
pub mod connections;
pub mod control;
pub mod daemon;
pub mod events;
pub mod explain;
pub mod exposition;
pub mod history;
pub mod human;
pub mod journal;
pub mod kernel;
pub mod links;
pub mod loader;
pub mod maps;
pub mod metrics;
pub mod pins;
pub mod policy;
pub mod registry;
pub mod status;
pub mod suggest;
pub mod top;
mod tries;
