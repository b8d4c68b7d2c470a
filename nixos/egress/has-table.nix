# A command line that fails, and says what to do, where the kernel has not the nftables table that is marked so.
{
  lib,
  pkgs,
  mark,
}:
import ../units/exec.nix { inherit lib; } [
  (lib.getExe pkgs.bash)
  "-c"
  (
    # Not to /dev/null: a command after `+` has no PrivateDevices=, and finds none in the empty root.
    "[ -n \"$(${lib.getExe pkgs.nftables} list chain inet opencode-egress ${mark})\" ] || { echo '"
    + "The nftables table inet opencode-egress in the kernel is not the one of this configuration: the second lock is missing, or an older one. "
    + "nftables.service could not load it (journalctl -u nftables), or something else has removed it. "
    + "Mend that, then: systemctl reload-or-restart nftables, and start this again."
    + "' >&2; exit 1; }"
  )
]
