# The packages and builders that the module uses, as paths without hashes: what is rendered with them runs on a Debian
# machine that has opencode and opencode-egress in /nix/store, and its own programs in /usr.
{
  lib,
  # What builds, and what it is built for.
  platforms ? lib.genAttrs [ "buildPlatform" "hostPlatform" ] (_: lib.systems.elaborate "x86_64-linux"),
}:
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
  program = name: debian // { meta.mainProgram = name; };
  named = pname: program: program // { inherit pname; };
in
{
  stdenv = platforms;

  opencode = stored "opencode" { meta.mainProgram = "opencode"; };
  opencode-egress = stored "opencode-egress" { };

  bash = named "bash" (program "bash");
  coreutils = debian;
  findutils = debian;
  gawk = debian;
  git = named "git" debian;
  glibcLocales = debian;
  gnugrep = debian;
  gnused = debian;
  gnutar = debian;
  gzip = debian;
  # Debian has it in a directory of its own.
  nftables = stored "nftables" {
    meta.mainProgram = "nft";
    entries."bin/nft".text = "#!/bin/sh\nexec /usr/sbin/nft \"$@\"\n";
  };
  nginx = stored "nginx" { entries."bin/nginx".text = "#!/bin/sh\nexec /usr/sbin/nginx \"$@\"\n"; };
  nodejs = debian;
  python3 = debian;
  ripgrep = named "ripgrep" (program "rg");
  sqlite = debian;
  systemd = debian;
  tzdata = debian;
  util-linux = debian;

  # Each says what would be in it.
  writeText = name: text: stored name { inherit text; };
  writeScript = name: text: stored name { inherit text; };
  writeShellScript = name: text: stored name { text = "#!/bin/bash\n${text}\n"; };
  linkFarm =
    name: entries:
    stored name {
      entries = lib.listToAttrs (map (entry: lib.nameValuePair entry.name entry.path) entries);
    };
  runCommand =
    name: environment: buildCommand:
    stored name (environment // { inherit buildCommand; });
}
