//! Having no privileges.

use rustix::{
    io,
    process::{Gid, Uid, getuid},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

/// The user whom no file belongs to.
const NOBODY: u32 = 65534;

/// Gives up all privileges of the calling thread, which is to be the only one: capabilities, and of root also user and groups.
///
/// # Errors
///
/// When the system refuses; some may have been given up then.
pub fn drop_all() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    if getuid().is_root() {
        // Those that this kernel knows; it refuses the others.
        for capability in CapabilitySet::all().iter() {
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(io::Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
