//! Which program asked for what was denied: its file, and by which processes it came to run.

use std::fmt;

use opencode_egress_common::abi;
use serde::{Deserialize, Serialize};

/// What is known of the process that asked, as it is logged: nothing in it can end a line or look like another field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The file that the process runs, as its own mounts have it; see [`shown_path`]. `None`: unknown. A file that is removed ends in
    /// [`DELETED`], a path that was too long begins with [`CUT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The names of the process, its parent and so on, up to the first one of its unit; [`CUT`] at the end where there are more of
    /// them. Empty: unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// The process' cgroup, from the unit's on. `None`: it is the unit's own, or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// The end of the path of a file that is removed. No path can have it, for in one parentheses are escaped.
pub const DELETED: &str = "(deleted)";
/// What stands where something is left out.
pub const CUT: &str = "...";

impl Caller {
    /// What the kernel's programs told.
    pub fn of(told: &abi::Caller) -> Self {
        let has = |flag| told.flags & flag != 0;
        let exe = has(abi::Caller::HAS_EXE).then(|| {
            let is_cut = has(abi::Caller::EXE_CUT);
            let mut exe = path(&told.exe, told.exe_len, is_cut);
            if !is_cut {
                exe.insert(0, '/');
            }
            if has(abi::Caller::DELETED) {
                exe.push_str(DELETED);
            }
            exe
        });
        let names = told.via.iter().take(usize::try_from(told.via_len).unwrap_or(0));
        let mut via: Vec<_> = names.map(|name| shown_name(name)).collect();
        if has(abi::Caller::VIA_CUT) {
            via.push(CUT.to_owned());
        }
        let cgroup = path(&told.cgroup, told.cgroup_len, has(abi::Caller::CGROUP_CUT));
        Self { exe, via, cgroup: (!cgroup.is_empty()).then_some(cgroup) }
    }
}

/// A path of which the names are there from the last to the first.
fn path(names: &[u8], len: u32, is_cut: bool) -> String {
    let names = names.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(shown_path);
    let cut = is_cut.then(|| CUT.to_owned());
    let mut names: Vec<_> = names.chain(cut).collect();
    names.reverse();
    names.join("/")
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exe={} via=", self.exe.as_deref().unwrap_or("-"))?;
        match self.via.is_empty() {
            true => f.write_str("-")?,
            false => f.write_str(&self.via.join(","))?,
        }
        match &self.cgroup {
            Some(cgroup) => write!(f, " cgroup={cgroup}"),
            None => Ok(()),
        }
    }
}

/// A path as it is logged: `\x20` for a space, and so for everything else that could end a field, turn its direction, or be taken for
/// [`DELETED`].
pub fn shown_path(path: &[u8]) -> String {
    let mut shown = String::with_capacity(path.len());
    for byte in path {
        if byte.is_ascii_graphic() && !b"=\\\"'()".contains(byte) {
            shown.push(char::from(*byte));
        } else {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// A process' name as it is logged. A process chooses its own, and may not make two of it in [`Caller::via`].
pub fn shown_name(name: &[u8]) -> String {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    match name {
        [] => "?".to_owned(),
        name => String::from_utf8_lossy(name)
            .replace(|c: char| !c.is_ascii_graphic() || c == '=' || c == ',', "?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's programs tell of paths with these names, the last one first.
    fn told(exe: &[&str], cgroup: &[&str], via: &[&str], flags: u32) -> abi::Caller {
        let zero = abi::Caller {
            exe: [b'x'; abi::EXE_BYTES],
            cgroup: [b'x'; abi::CGROUP_BYTES],
            via: [[b'x'; 16]; abi::VIA_NAMES],
            exe_len: 0,
            cgroup_len: 0,
            via_len: 0,
            flags,
            work: [7; abi::WORK_WORDS],
        };
        let mut told = zero;
        let fill = |to: &mut [u8], names: &[&str]| {
            let bytes: Vec<_> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
            to[..bytes.len()].copy_from_slice(&bytes);
            u32::try_from(bytes.len()).expect("short names")
        };
        told.exe_len = fill(&mut told.exe, exe);
        told.cgroup_len = fill(&mut told.cgroup, cgroup);
        for (to, name) in told.via.iter_mut().zip(via) {
            *to = [0; 16];
            to[..name.len()].copy_from_slice(name.as_bytes());
            told.via_len += 1;
        }
        told
    }

    #[test]
    fn paths_are_told_from_their_last_name() {
        let exe = abi::Caller::HAS_EXE;
        let shown = |told: &abi::Caller| Caller::of(told).to_string();
        let plain = told(&["curl", "bin", "usr"], &["a", "payload"], &["curl", "bash"], exe);
        assert_eq!(shown(&plain), "exe=/usr/bin/curl via=curl,bash cgroup=payload/a");
        let cut = exe | abi::Caller::EXE_CUT | abi::Caller::VIA_CUT | abi::Caller::CGROUP_CUT;
        let cut = told(&["curl", "bin"], &["a"], &["curl"], cut | abi::Caller::DELETED);
        assert_eq!(shown(&cut), "exe=.../bin/curl(deleted) via=curl,... cgroup=.../a");
        assert_eq!(shown(&told(&["x", "..."], &[], &[""], exe)), "exe=/.../x via=?", "that is its name");
        assert_eq!(shown(&told(&[], &[], &[], 0)), "exe=- via=-");
        // Lengths beyond the room, as no program writes them.
        let mut wrong = plain;
        (wrong.exe_len, wrong.cgroup_len, wrong.via_len) = (u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(Caller::of(&wrong).via.len(), abi::VIA_NAMES);
    }

    fn caller() -> Caller {
        let via = ["curl", "bash", "opencode"].map(str::to_owned).to_vec();
        Caller { exe: Some("/usr/bin/curl".to_owned()), via, cgroup: Some("payload/a".to_owned()) }
    }

    #[test]
    fn the_fields_are_the_documented_ones() {
        assert_eq!(caller().to_string(), "exe=/usr/bin/curl via=curl,bash,opencode cgroup=payload/a");
        assert_eq!(Caller::default().to_string(), "exe=- via=-", "who does not know says so");
        let json = serde_json::to_string(&caller()).expect("JSON");
        let documented = r#"{"exe":"/usr/bin/curl","via":["curl","bash","opencode"],"cgroup":"payload/a"}"#;
        assert_eq!(json, documented);
        assert_eq!(serde_json::from_str::<Caller>(&json).expect("a caller"), caller());
        assert_eq!(serde_json::from_str::<Caller>("{}").expect("a caller"), Caller::default());
    }

    #[test]
    fn a_path_or_a_name_cannot_forge_a_field() {
        assert_eq!(shown_path(b"/srv/my project/a"), r"/srv/my\x20project/a");
        assert_eq!(shown_path(b"/tmp/x (deleted)"), r"/tmp/x\x20\x28deleted\x29");
        assert_eq!(shown_path(b"/a\n\"b\" uid=0\\"), r"/a\x0a\x22b\x22\x20uid\x3d0\x5c");
        assert_eq!(shown_path("/ö\u{202e}".as_bytes()), r"/\xc3\xb6\xe2\x80\xae");
        assert_eq!(shown_name(b"a,b=c\nd e\0left"), "a?b?c?d?e");
    }
}
