//! The resolver as a process of its own, with real sockets on loopback: the tests are its daemon, its clients and the server that it
//! asks. As the server sees every question, it says what was asked of nobody.

mod answers;
mod daemon;
mod families;
mod lists;
mod questions;
mod upstream;
mod world;
