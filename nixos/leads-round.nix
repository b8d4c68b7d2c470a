# What in settings of a unit's `[Service]` section would lead round the instance's policy: a message for each. `place` is where they are written;
# of `commands` only the privileges count.
{ lib, instances }:
{
  place,
  settings,
  commands ? { },
  # What else there is to be done.
  otherwise ? "or turn `networkIsolation.enable` of the instance off",
}:
let
  inherit (lib) attrNames filter optional;
  it = list: if lib.length list == 1 then "it" else "them";
  mounts = import ./mounts.nix { inherit lib; } { extraConfig = settings; };
  run = settings // commands;

  refused = filter (key: settings ? ${key}) (import ./units/kept-settings.nix);
  # Commands with the prefixes by which systemd runs them as root, whatever else the unit says (systemd.service(5)).
  # They may be in quotes, and there may be several.
  privileged = filter (
    key:
    lib.any (
      command:
      builtins.match "([-@:|[:space:]]*|.*[[:space:]];[[:space:]]+[-@:|]*)[+!\"'\\].*" command != null
    ) (map toString (lib.toList run.${key}))
  ) (filter (lib.hasPrefix "Exec") (attrNames run));
  misnamed = filter (key: builtins.match "[A-Za-z0-9]+" key == null) (attrNames settings);
  # What `attach` is, and whom it asks.
  covered = filter (
    mount:
    mount.source != mount.destination
    && lib.any (instances.nested mount.destination) [
      (dirOf instances.attachProgram)
      "/run/opencode-egress"
      builtins.storeDir
    ]
  ) mounts;
in
optional (refused != [ ])
  "${place}: ${lib.concatStringsSep ", " refused} would lead round the instance's policy. Remove ${it refused}, ${otherwise}."
++ optional (privileged != [ ])
  "${place}: ${lib.concatStringsSep ", " privileged}: a command after `+` or `!` has root's privileges, with which it can leave the instance's policy; quotes and backslashes can hide one. Write the absolute path first, ${otherwise}."
++ optional (misnamed != [ ])
  "${place}: `${lib.concatStringsSep "`, `" misnamed}` is no name of a setting, and what systemd makes of it could lead round the instance's policy. Write a name as in systemd.exec(5)."
++ map (
  mount:
  "${place}.${mount.setting}: ${mount.source} would be seen at ${mount.destination}, in the place of the program that attaches the instance's policy, or of the daemon that it asks. Choose another destination, ${otherwise}."
) covered
