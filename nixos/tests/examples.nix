# The hosts of nixos/examples, as they are and as they are rendered.
{ lib, host }:
let
  inherit (lib) attrNames filter hasSuffix;
  evaluate = example: (host.evaluate [ example ]).config;
  clean = config: {
    inherit (config) warnings;
    failures = host.failures config;
  };
  good = {
    warnings = [ ];
    failures = [ ];
  };
  rendered = import ../stub/render.nix {
    inherit lib;
    hosts = {
      one = ../examples/one.nix;
      ten = ../examples/ten.nix;
    };
  };
  units = name: filter (hasSuffix ".service") (attrNames rendered.${name});
in
{
  "one is good" = {
    got = clean (evaluate ../examples/one.nix);
    expected = good;
  };
  "ten is good" = {
    got = clean (evaluate ../examples/ten.nix);
    expected = good;
  };
  "one is rendered" = {
    got = attrNames rendered.one;
    expected = [
      "/etc/nftables-pre-check"
      "/etc/opencode-egress/policy.json"
      "/etc/opencode-instructions/my-project/network.md"
      "/etc/systemd/journald@opencode-my-project.conf"
      "/etc/systemd/system/multi-user.target.d/wants.conf"
      "/etc/systemd/system/nftables.service"
      "/etc/systemd/system/nftables.service.d/users.conf"
      "/etc/systemd/system/opencode-egress-resolver.service"
      "/etc/systemd/system/opencode-egress.service"
      "/etc/systemd/system/opencode-my-project-backup.service"
      "/etc/systemd/system/opencode-my-project-paths.service"
      "/etc/systemd/system/opencode-my-project-setup.service"
      "/etc/systemd/system/opencode-my-project.service"
      "/etc/systemd/system/run-opencode-pts-my\\x2dproject.mount"
      "/etc/systemd/system/systemd-journald-sync@.service.d/overrides.conf"
      "/etc/sysusers.d/opencode.conf"
      "/etc/tmpfiles.d/opencode.conf"
      "/nix/store/journald@opencode-my-project.conf"
      "/nix/store/nftables-ensure-deletions"
      "/nix/store/nftables-rules"
      "/nix/store/nftables-save-deletions"
      "/nix/store/nftables/bin/nft"
      "/nix/store/opencode-my-project-backup"
      "/nix/store/opencode-my-project-files/opencode.json"
      "/nix/store/opencode-my-project-files/wgetrc"
      "/nix/store/opencode-my-project-network.md"
      "/nix/store/opencode-my-project-paths"
      "/nix/store/opencode-my-project-setup"
    ];
  };
  "one is started by the boot" = {
    got = rendered.one."/etc/systemd/system/multi-user.target.d/wants.conf";
    expected = "[Unit]\nWants=nftables.service opencode-egress.service opencode-my-project.service\n";
  };
  "ten has four units each, the daemon, the resolver and nftables" = {
    got = builtins.length (units "ten");
    expected = 43;
  };
}
