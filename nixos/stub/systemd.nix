# systemd's units as NixOS has them: what may be written, and what is added to it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = default: type: mkOption { inherit default type; };

  unitName = types.strMatching "[a-zA-Z0-9@%:_.\\\\-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)";
  units = option [ ] (types.listOf unitName);

  # Lists, and single values beside lists, are put together.
  setting = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: defs:
      if lib.any (def: lib.isList def.value) defs then
        lib.concatMap (def: lib.toList def.value) defs
      else
        lib.mergeEqualOption loc defs;
  };
  # Of some settings the values are known.
  known = {
    Type = [ "exec" "simple" "forking" "oneshot" "dbus" "notify" "notify-reload" "idle" ];
    Restart = [ "no" "on-success" "on-failure" "on-abnormal" "on-abort" "always" ];
  };
  # Definitions may have a priority of their own.
  plain = value: if lib.elem (value._type or "") [ "override" "if" ] then value.content else value;
  settings = types.addCheck (types.attrsOf setting) (
    section:
    lib.all (key: !section ? ${key} || lib.elem (plain section.${key}) known.${key}) (lib.attrNames known)
  );

  atom = types.oneOf [
    types.str
    types.path
    types.package
  ];

  service =
    { config, options, ... }:
    {
      options = {
        enable = option true types.bool;
        description = option "" types.singleLineStr;
        wantedBy = units;
        requiredBy = units;
        wants = units;
        requires = units;
        after = units;
        before = units;
        conflicts = units;
        environment = option { } (types.attrsOf (types.nullOr atom));
        path = option [ ] (types.listOf (types.either types.package types.str));
        enableDefaultPath = option true types.bool;
        unitConfig = option { } (types.attrsOf setting);
        serviceConfig = option { } settings;
        reloadTriggers = option [ ] (types.listOf types.unspecified);
        restartTriggers = option [ ] (types.listOf types.unspecified);
        reloadIfChanged = option false types.bool;
        stopIfChanged = option true types.bool;
        overrideStrategy = option "asDropinIfExists" (types.enum [ "asDropinIfExists" "asDropin" ]);
        startLimitIntervalSec = mkOption { type = types.int; };
      };
      config = {
        path = lib.mkIf config.enableDefaultPath (
          lib.mkAfter [
            pkgs.coreutils
            pkgs.findutils
            pkgs.gnugrep
            pkgs.gnused
            pkgs.systemd
          ]
        );
        environment.PATH = lib.mkIf (config.path != [ ]) (
          lib.concatMapStringsSep ":" (directory: lib.makeSearchPath directory (lib.unique (map toString config.path))) [
            "bin"
            "sbin"
          ]
        );
        unitConfig =
          lib.concatMapAttrs (key: list: lib.optionalAttrs (list != [ ]) { ${key} = toString list; }) {
            Wants = config.wants;
            Requires = config.requires;
            After = config.after;
            Before = config.before;
            Conflicts = config.conflicts;
          }
          // lib.optionalAttrs (config.description != "") { Description = config.description; }
          // lib.optionalAttrs options.startLimitIntervalSec.isDefined {
            StartLimitIntervalSec = toString config.startLimitIntervalSec;
          };
      };
    };

  timer.options = {
    description = option "" types.singleLineStr;
    wantedBy = units;
    timerConfig = option { } (types.attrsOf setting);
  };
  path.options = {
    description = option "" types.singleLineStr;
    wantedBy = units;
    pathConfig = option { } (types.attrsOf setting);
  };

  mount = types.submodule {
    options = {
      description = option "" types.singleLineStr;
      what = mkOption { type = types.str; };
      where = mkOption { type = types.str; };
      type = option "" types.str;
      options = option "" types.commas;
    };
  };

  # Where it was once, and is no more.
  gone = "network-interfaces.target";
in
{
  options.systemd = {
    services = option { } (types.attrsOf (types.submodule service));
    mounts = option [ ] (types.listOf mount);
    paths = option { } (types.attrsOf (types.submodule path));
    timers = option { } (types.attrsOf (types.submodule timer));
    globalEnvironment = option { } (types.attrsOf (types.nullOr atom));
    tmpfiles.rules = option [ ] (types.listOf types.str);
  };

  config = {
    systemd.globalEnvironment = {
      LOCALE_ARCHIVE = "${pkgs.glibcLocales}/lib/locale/locale-archive";
      TZDIR = "${pkgs.tzdata}/share/zoneinfo";
    };
    assertions = lib.mapAttrsToList (name: service: {
      assertion = !lib.elem gone (service.after ++ service.wants);
      message = "Service '${name}.service' is using the deprecated target ${gone}, which no longer exists. Using network.target is recommended instead.";
    }) config.systemd.services;
  };
}
