//! The map TLS_NAMES: the servers that rules with `tls` list, a trie for each policy.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{Ebpf, maps::Map};
use opencode_egress_common::hello::ServerNameKey;

use super::MapsError;
use crate::{
    kernel::tries::{self, NewTrie},
    policy::{compile::CompiledName, name::NamePattern},
};

/// The servers of all policies. The slot of a policy without any has what it had: nobody looks there.
pub(super) struct Servers {
    map: OwnedFd,
    /// Takes the place of those of a policy that is no longer in force.
    none: NewTrie,
    /// Some policy had any, since this process began.
    any: bool,
}

/// The servers of one policy, in the kernel; `None` where no rule has `tls`.
pub(super) fn load(names: &[CompiledName]) -> Result<Option<NewTrie>, MapsError> {
    let mut keys: Vec<_> =
        names.iter().filter(|name| name.rule.tls()).map(|name| key(name.rule.pattern())).collect();
    keys.sort_unstable_by_key(|key| (key.data, key.prefix_len));
    keys.dedup();
    if keys.is_empty() {
        return Ok(None);
    }
    let entries: Vec<_> = keys.into_iter().map(|key| (key, 1_u32)).collect();
    NewTrie::of(&entries).map(Some).map_err(MapsError::tries("fill an entry of"))
}

fn key(pattern: &NamePattern) -> ServerNameKey {
    match pattern {
        NamePattern::Exact(name) => ServerNameKey::exact(name.as_str()),
        NamePattern::Below(name) => ServerNameKey::below(name.as_str()),
    }
}

impl Servers {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let missing = MapsError::Missing("TLS_NAMES");
        let Some(map @ Map::ArrayOfMaps(_)) = ebpf.take_map("TLS_NAMES") else { return Err(missing) };
        let Map::ArrayOfMaps(data) = &map else { return Err(missing) };
        let map = data.fd().as_fd().try_clone_to_owned().map_err(MapsError::tries("open"))?;
        let none = NewTrie::of::<ServerNameKey, u32>(&[]).map_err(MapsError::tries("create"))?;
        Ok(Self { map, none, any: false })
    }

    /// Fills slots that nobody looks at yet.
    pub(super) fn set(&mut self, servers: &[(u32, &NewTrie)]) -> Result<(), MapsError> {
        if servers.is_empty() {
            return Ok(());
        }
        self.any = true;
        let (slots, tries): (Vec<_>, Vec<_>) = servers.iter().copied().unzip();
        tries::set(self.map.as_fd(), &slots, &tries).map_err(MapsError::tries("write to"))
    }

    /// Frees those of slots that nobody looks at any more.
    pub(super) fn free(&self, slots: &[u32]) -> Result<(), MapsError> {
        if !self.any {
            return Ok(());
        }
        tries::set(self.map.as_fd(), slots, &vec![&self.none; slots.len()])
            .map_err(MapsError::tries("write to"))
    }
}
