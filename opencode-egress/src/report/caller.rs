//! Which program asked for what was denied: its file, and by which processes it came to run.

use std::fmt;

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
    String::from_utf8_lossy(name).replace(|c: char| !c.is_ascii_graphic() || c == '=' || c == ',', "?")
}

#[cfg(test)]
mod tests {
    use super::*;

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
