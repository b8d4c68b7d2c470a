//! Names: two units with lists of names, and the second host's server for names, which is asked for listed ones and for nothing else.

mod asked;
mod changed;
mod held;
mod hostile;
mod kept;
mod learn;
mod leased;
mod long;
mod race;
mod tls;
mod units;

pub(super) use self::{
    asked::NAMES, changed::CHANGED, hostile::HOSTILE, kept::KEPT, learn::LEARN, leased::LEASES, race::RACE,
    tls::TLS,
};
pub(crate) use self::{long::long_flow, race::race_of_names};
