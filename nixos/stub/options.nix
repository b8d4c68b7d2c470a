# The options of NixOS that the module reads and sets, declared with NixOS' own types as far as those matter here.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option = default: type: mkOption { inherit default type; };
  strings = option [ ] (types.listOf types.str);

  atom = types.oneOf [
    types.bool
    types.int
    types.float
    types.str
    types.path
    types.package
  ];
  # As systemd's settings merge in NixOS: lists, and single values beside lists, are put together.
  setting = lib.mkOptionType {
    name = "systemd option";
    check = value: atom.check value || lib.isList value && lib.all atom.check value;
    merge =
      loc: defs:
      if lib.any (def: lib.isList def.value) defs then
        lib.concatMap (def: lib.toList def.value) defs
      else
        lib.mergeEqualOption loc defs;
  };
  settings = option { } (types.attrsOf setting);

  service = types.submodule {
    options = {
      description = option "" types.str;
      wantedBy = strings;
      wants = strings;
      requires = strings;
      after = strings;
      before = strings;
      environment = option { } (types.attrsOf (types.nullOr atom));
      path = option [ ] (types.listOf (types.either types.package types.str));
      unitConfig = settings;
      serviceConfig = settings;
      reloadTriggers = option [ ] (types.listOf types.unspecified);
      restartTriggers = option [ ] (types.listOf types.unspecified);
      stopIfChanged = option true types.bool;
      startLimitIntervalSec = option null (types.nullOr types.int);
    };
  };

  etc = types.submodule { options.source = mkOption { type = types.path; }; };

  table = types.submodule {
    options = {
      family = mkOption { type = types.enum [ "inet" ]; };
      content = mkOption { type = types.lines; };
    };
  };

  # Users and groups have the names of their attributes, unless they are given others.
  named =
    options:
    types.submodule (
      { name, ... }:
      {
        options = options // {
          name = option name types.str;
        };
      }
    );
  user = named {
    enable = option true types.bool;
    isSystemUser = option false types.bool;
    group = option "" types.str;
    home = option "/var/empty" types.path;
    description = option "" types.str;
  };
in
{
  options = {
    assertions = option [ ] (types.listOf types.unspecified);
    warnings = strings;
    environment.etc = option { } (types.attrsOf etc);
    environment.systemPackages = option [ ] (types.listOf types.package);
    systemd.services = option { } (types.attrsOf service);
    systemd.tmpfiles.rules = strings;
    users.users = option { } (types.attrsOf user);
    users.groups = option { } (types.attrsOf (named { }));
    networking.firewall = {
      enable = option true types.bool;
      allowedTCPPorts = option [ ] (types.listOf types.port);
    };
    networking.nftables = {
      enable = option false types.bool;
      preCheckRuleset = option "" types.lines;
      tables = option { } (types.attrsOf table);
    };
  };
}
