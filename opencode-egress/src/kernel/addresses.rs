//! The machine's own addresses.

use std::{io, net::IpAddr};

/// Every address of every interface of this network namespace.
///
/// # Errors
///
/// When the system does not say.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.into_iter().map(|interface| interface.ip().to_canonical()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_one_of_them() {
        let own = own_addresses().expect("addresses");
        assert!(own.contains(&IpAddr::from([127, 0, 0, 1])), "{own:?}");
    }
}
