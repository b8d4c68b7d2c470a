//! Egress control for headless opencode servers. ARCHITECTURE.md has the way of a packet and of a policy.
//!
//! A storey for each module; each uses only those below it: [`command`]; [`daemon`] and [`resolver`]; [`kernel`] and [`control`];
//! [`cgroups`] and [`report`]; [`policy`].

pub mod cgroups;
pub mod command;
pub mod control;
pub mod daemon;
pub mod kernel;
pub mod policy;
pub mod report;
pub mod resolver;
