# What `nix flake init` copies, as it is: its flake, and the hosts in it. And the examples that are no hosts of other tests.
{ lib, host }:
let
  opencode-egress = (import ../../flake.nix).outputs {
    self = opencode-egress;
    nixpkgs = { inherit lib; };
  };
  template = opencode-egress.templates.default;

  # Of nixpkgs, as much as the template takes.
  stored = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/${name}";
  };
  nixpkgs = {
    lib = lib // {
      nixosSystem =
        { modules }:
        (import ../stub { inherit lib; } (
          [ { options.nixpkgs = lib.mkOption { type = lib.types.attrsOf lib.types.raw; }; } ]
          # The machine's own is not there.
          ++ lib.filter (module: !lib.isPath module || builtins.pathExists module) modules
        )).config;
    };
    legacyPackages.x86_64-linux = lib.makeExtensible (_: {
      inherit lib;
      opencode = stored "opencode";
      symlinkJoin = arguments: arguments;
      writeShellScriptBin = name: text: stored name // { inherit text; };
      writeText = name: text: stored name // { inherit text; };
    });
  };

  flake = (import (template.path + "/flake.nix")).outputs { inherit nixpkgs opencode-egress; };
  hosts = flake.nixosConfigurations;
in
{
  "every host is good" = {
    got = lib.mapAttrs (_: config: {
      inherit (config) warnings;
      failures = host.failures config;
    }) hosts;
    expected = lib.genAttrs [ "agents" "one" "ten" ] (_: {
      warnings = [ ];
      failures = [ ];
    });
  };
  "and has its servers" = {
    got = lib.mapAttrs (_: config: builtins.length (lib.attrNames config.services.opencode.instances)) hosts;
    expected = {
      agents = 1;
      one = 1;
      ten = 10;
    };
  };
  "every example is a host of it, and of the tests that start them" =
    let
      files = lib.remove "flake.nix" (lib.attrNames (builtins.readDir template.path));
      names = lib.sort lib.lessThan (map (lib.removeSuffix ".nix") files);
    in
    {
      got = {
        inherit names;
        started = lib.subtractLists (lib.attrNames (import ../hosts.nix { inherit lib; })) names;
      };
      expected = {
        names = lib.attrNames hosts;
        started = [ ];
      };
    };
  "what it runs has a configuration" = {
    got = (lib.head flake.packages.x86_64-linux.default.paths).text;
    expected = ''
      export OPENCODE_CONFIG=/nix/store/opencode.json

      exec /nix/store/opencode/bin/opencode "$@"
    '';
  };
}
