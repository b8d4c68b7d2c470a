//! Where the running kernel has what says who asked, by its own description of its types: BTF,
//! <https://docs.kernel.org/bpf/btf.html>. aya reads that for itself alone.

use std::{collections::HashMap, fs, io};

use opencode_egress_common::abi::CallerLayout;

use crate::kernel::features::Features;

/// The kernel's description of its own types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why it is not known where.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Programs may not look.
    #[error(
        "this kernel lets no program read who asked: the process that loads them lacks CAP_PERFMON, or the kernel is locked down"
    )]
    NotPermitted,
    /// There is no description.
    #[error("cannot read {VMLINUX}: {0}; a kernel with CONFIG_DEBUG_INFO_BTF has it")]
    Read(io::Error),
    /// It ends early, or is none.
    #[error("{VMLINUX} is not what the kernel documents")]
    Form,
    /// Something is not in it.
    #[error("{VMLINUX} has no {0}")]
    Lacks(&'static str),
}

/// Asks the running kernel.
///
/// # Errors
///
/// When it does not say, has something else, or lets no program read it.
pub(super) fn of_this_kernel(features: &Features) -> Result<CallerLayout, LayoutError> {
    if !features.programs_may_read_kernel {
        return Err(LayoutError::NotPermitted);
    }
    of(&fs::read(VMLINUX).map_err(LayoutError::Read)?)
}

fn of(btf: &[u8]) -> Result<CallerLayout, LayoutError> {
    let types = Types::read(btf).ok_or(LayoutError::Form)?;
    let at = |place: &'static str| types.offset(place).ok_or(LayoutError::Lacks(place));
    Ok(CallerLayout {
        known: 1,
        task_mm: at("task_struct.mm")?,
        task_real_parent: at("task_struct.real_parent")?,
        task_group_leader: at("task_struct.group_leader")?,
        task_comm: at("task_struct.comm")?,
        task_fs: at("task_struct.fs")?,
        task_cgroups: at("task_struct.cgroups")?,
        mm_exe_file: at("mm_struct.exe_file")?,
        file_path_mnt: at("file.f_path.mnt")?,
        file_path_dentry: at("file.f_path.dentry")?,
        fs_root_mnt: at("fs_struct.root.mnt")?,
        fs_root_dentry: at("fs_struct.root.dentry")?,
        vfsmount_root: at("vfsmount.mnt_root")?,
        mount_mnt: at("mount.mnt")?,
        mount_parent: at("mount.mnt_parent")?,
        mount_mountpoint: at("mount.mnt_mountpoint")?,
        dentry_parent: at("dentry.d_parent")?,
        dentry_name: at("dentry.d_name.name")?,
        dentry_hash_pprev: at("dentry.d_hash.pprev")?,
        css_set_dfl_cgrp: at("css_set.dfl_cgrp")?,
        cgroup_self: at("cgroup.self")?,
        cgroup_self_parent: at("cgroup.self.parent")?,
        cgroup_kn: at("cgroup.kn")?,
        kn_id: at("kernfs_node.id")?,
        kn_name: at("kernfs_node.name")?,
    })
}

const MAGIC: u16 = 0xeb9f;

/// `BTF_KIND_…`, of those that matter here.
mod kind {
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// `struct btf_type` without what follows it.
#[derive(Clone, Copy)]
struct Type {
    /// Where what follows it begins, in the section of types.
    rest: usize,
    kind: u32,
    /// How many members it has, if it has members.
    members: usize,
    /// A member's offset has a bit field's size in its upper byte.
    bit_fields: bool,
    /// Of what it is a name or a qualified form.
    of: u32,
}

struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// By number; the first one is of the kernel's `void`.
    all: Vec<Type>,
    structures: HashMap<&'a [u8], u32>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn size(bytes: &[u8], at: usize) -> Option<usize> {
    word(bytes, at)?.try_into().ok()
}

impl<'a> Types<'a> {
    fn read(btf: &'a [u8]) -> Option<Self> {
        if btf.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = size(btf, 4)?;
        let section = |at| {
            let start = header.checked_add(size(btf, at)?)?;
            btf.get(start..start.checked_add(size(btf, at + 4)?)?)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let void = Type { rest: 0, kind: 0, members: 0, bit_fields: false, of: 0 };
        let mut read = Self { types, strings, all: vec![void], structures: HashMap::new() };
        let mut at = 0;
        while at < types.len() {
            let (name, info) = (word(types, at)?, word(types, at + 4)?);
            let (kind, members) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
            let rest = at + 12;
            if kind == kind::STRUCT {
                let number = u32::try_from(read.all.len()).ok()?;
                read.structures.entry(read.string(name)?).or_insert(number);
            }
            let bit_fields = info >> 31 != 0;
            read.all.push(Type { rest, kind, members, bit_fields, of: word(types, at + 8)? });
            at = rest.checked_add(length(kind, members)?)?;
        }
        Some(read)
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(usize::try_from(at).ok()?..)?;
        rest.split(|byte| *byte == 0).next()
    }

    /// The offset of a structure's member, or of a member of that, as in `file.f_path.mnt`; bytes.
    fn offset(&self, place: &str) -> Option<u32> {
        let mut names = place.split('.');
        let mut number = *self.structures.get(names.next()?.as_bytes())?;
        let mut bits = 0;
        for name in names {
            let (offset, of) = self.member(number, name)?;
            (bits, number) = (bits + offset, of);
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The offset of a member in bits, and its type. The members of one without a name are the structure's own.
    fn member(&self, number: u32, name: &str) -> Option<(u32, u32)> {
        let structure = self.resolve(number)?;
        if !matches!(structure.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..structure.members).find_map(|member| {
            let at = structure.rest + member * 12;
            let (named, of) = (self.string(word(self.types, at)?)?, word(self.types, at + 4)?);
            let offset = word(self.types, at + 8)?;
            let offset = if structure.bit_fields { offset & 0xff_ffff } else { offset };
            match named {
                named if named == name.as_bytes() => Some((offset, of)),
                b"" => self.member(of, name).map(|(inner, of)| (offset + inner, of)),
                _ => None,
            }
        })
    }

    /// What a name, or a qualified form, is of.
    fn resolve(&self, mut number: u32) -> Option<Type> {
        for _ in 0..32 {
            let found = *self.all.get(usize::try_from(number).ok()?)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => number = found.of,
                _ => return Some(found),
            }
        }
        None
    }
}

/// How many bytes follow a type of a kind. `None`: this is of a later kernel.
fn length(kind: u32, members: usize) -> Option<usize> {
    match kind {
        // A number; where and what a variable or a tag is.
        1 | 14 | 17 => Some(4),
        kind::ARRAY => Some(12),
        // Members, what is in a section, and values of 64 bits.
        kind::STRUCT | kind::UNION | 15 | 19 => Some(members * 12),
        // Values of 32 bits, and parameters.
        6 | 13 => Some(members * 8),
        // Pointers and names.
        2 | 7..=12 | 16 | 18 => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of `struct path { void *a, *b, *mnt }` and of a file that has one in a union without a name.
    fn described() -> Vec<u8> {
        let strings = b"\0path\0mnt\0file\0f_path\0alias\0a\0b\0";
        let at = |name: &str| {
            let found = strings.windows(name.len() + 2).position(|window| {
                window[0] == 0 && &window[1..=name.len()] == name.as_bytes() && window[name.len() + 1] == 0
            });
            u32::try_from(found.expect("a string") + 1).expect("a small number")
        };
        let pointer = [0, 2 << 24, 0];
        let path = [at("path"), 4 << 24 | 3, 24, at("a"), 1, 0, at("b"), 1, 64, at("mnt"), 1, 128];
        let alias = [at("alias"), 10 << 24, 2];
        let union = [0, 5 << 24 | 1, 24, at("f_path"), 3, 0];
        let file = [at("file"), 4 << 24 | 2, 32, at("a"), 1, 0, 0, 4, 64];
        let types: Vec<u8> = [&pointer[..], &path, &alias, &union, &file]
            .concat()
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let header = [24, 0, types.len(), types.len(), strings.len()];
        let mut btf = vec![];
        btf.extend(MAGIC.to_ne_bytes());
        btf.extend([1, 0]);
        btf.extend(header.into_iter().flat_map(|word| u32::try_from(word).expect("small").to_ne_bytes()));
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found_through_unions_without_a_name() {
        let btf = described();
        let types = Types::read(&btf).expect("a description");
        assert_eq!(types.offset("path.mnt"), Some(16));
        assert_eq!(types.offset("file.f_path.mnt"), Some(24));
        assert_eq!(types.offset("file.mnt"), None);
        assert_eq!(types.offset("nothing.mnt"), None);
        assert!(matches!(of(&btf), Err(LayoutError::Lacks("task_struct.mm"))));
    }

    #[test]
    fn what_is_cut_anywhere_is_no_description() {
        let btf = described();
        for len in 0..btf.len() - 1 {
            assert!(of(&btf[..len]).is_err(), "{len} bytes");
        }
        assert!(matches!(of(b"no description, but long enough for its head"), Err(LayoutError::Form)));
    }
}
