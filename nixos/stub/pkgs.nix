# The packages and builders that the module uses, as paths without hashes: what is rendered with them runs on a Debian
# machine that has opencode and opencode-egress in /nix/store, and its own programs in /usr.
{ lib }:
let
  package =
    outPath: attributes:
    {
      type = "derivation";
      name = baseNameOf outPath;
      inherit outPath;
      meta = { };
    }
    // attributes;
  stored = name: package "${builtins.storeDir}/${name}";
  debian = package "/usr" { };
in
{
  opencode = stored "opencode" { meta.mainProgram = "opencode"; };
  opencode-egress = stored "opencode-egress" { };

  coreutils = debian;
  findutils = debian;
  git = debian;
  python3 = debian;

  # Each says what would be in it.
  writeText = name: text: stored name { inherit text; };
  writeShellScript =
    name: text:
    stored name {
      text = "#!/bin/bash\n${text}";
      executable = true;
    };
  linkFarm = name: entries: stored name { inherit entries; };
  runCommand = name: environment: command: stored name { inherit environment command; };
}
