//! What is shown of a denial and of the state: the journal, metrics, status and the views of it.

pub mod caller;
pub mod denial;
pub mod history;
pub mod human;
pub mod journal;
pub mod lease;
pub mod metrics;
pub mod remedy;
pub mod status;
pub mod tried;
pub mod view;
pub mod why;
