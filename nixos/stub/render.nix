# What hosts become: name of the host -> path of a file -> its text.
#
# Store paths have no hashes here, so that the files can be put on a Debian machine: /nix/store/opencode and
# /nix/store/opencode-egress have the programs in bin/, everything else in /nix/store is among the files, and Debian's own
# programs are in /usr.
{ lib, hosts }:
let
  inherit (lib)
    attrNames
    attrValues
    concatMap
    concatMapStrings
    concatStringsSep
    filter
    hasPrefix
    head
    isAttrs
    listToAttrs
    mapAttrs
    mapAttrs'
    mapAttrsToList
    mergeAttrsList
    nameValuePair
    optionalAttrs
    optionalString
    toList
    ;
  evaluate = import ./. { inherit lib; };

  # Programs on Debian are dynamically linked against what is here. Beside what an instance lists itself, which would replace `defaults`.
  debian.options.services.opencode.instances = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule {
        sandbox.readOnlyPaths = [
          "/usr"
          "/bin"
          "/lib"
          "/lib64"
        ];
      }
    );
  };

  show = value: if lib.isBool value then lib.boolToString value else toString value;
  settings =
    section:
    concatStringsSep "" (
      mapAttrsToList (key: value: concatMapStrings (item: "${key}=${show item}\n") (toList value)) section
    );

  unit = globalEnvironment: service: ''
    [Unit]
    ${settings service.unitConfig}
    [Service]
    ${concatStringsSep "" (
      mapAttrsToList (key: value: "Environment=${builtins.toJSON "${key}=${value}"}\n") (
        lib.filterAttrs (_: value: value != null) (globalEnvironment // service.environment)
      )
    )}${settings service.serviceConfig}
    ${optionalString (service.wantedBy != [ ]) "[Install]\nWantedBy=${toString service.wantedBy}\n"}'';

  # The unit's name is the path, as systemd-escape(1) has it.
  mount = settings: {
    name = "/etc/systemd/system/${
      lib.replaceStrings [ "-" "/" ] [ "\\x2d" "-" ] (lib.removePrefix "/" settings.where)
    }.mount";
    value = ''
      [Unit]
      Description=${settings.description}

      [Mount]
      What=${settings.what}
      Where=${settings.where}
      Type=${settings.type}
      Options=${settings.options}
    '';
  };

  # A unit that starts another.
  activation =
    section: suffix: settingsOf: name: unit:
    nameValuePair "/etc/systemd/system/${name}${suffix}" ''
      [Unit]
      Description=${unit.description}

      [${section}]
      ${settings (settingsOf unit)}'';

  # Files that a package stands for. A link is shown as what it points to.
  packageFiles =
    package:
    if package ? text then
      { ${package.outPath} = package.text; }
    else if package ? entries then
      mapAttrs' (
        name: path:
        nameValuePair "${package.outPath}/${name}" (
          path.text or (throw "${package.outPath}/${name}: examples give texts, not paths")
        )
      ) package.entries
    else
      { };

  # Those that Debian has are not made.
  users =
    config:
    concatMapStrings (name: "g ${name} -\n") (
      attrNames (removeAttrs config.users.groups [ "root" "users" ])
    )
    + concatStringsSep "" (
      mapAttrsToList (
        name: user: "u ${name} -:${user.group} \"${user.description}\" ${user.home}\n"
      ) (removeAttrs config.users.users [ "root" ])
    );

  host =
    name: module:
    let
      inherit
        (evaluate [
          module
          debian
        ])
        config
        ;
      failed = filter (assertion: !assertion.assertion) config.assertions;
      services = config.systemd.services;
      enabled =
        suffix: units:
        map (name: name + suffix) (
          filter (
            name: lib.any (target: lib.elem target units.${name}.wantedBy) [ "multi-user.target" "timers.target" ]
          ) (attrNames units)
        );
      enabledUnits =
        enabled ".service" services
        ++ enabled ".path" config.systemd.paths
        ++ enabled ".timer" config.systemd.timers;
      commands = concatMap (
        service:
        concatMap toList (
          attrValues (lib.filterAttrs (key: _: hasPrefix "Exec" key) service.serviceConfig)
        )
      ) (attrValues services);
      packages =
        [ (import ./pkgs.nix { inherit lib; }).nftables ]
        ++ lib.optional (services ? opencode-keys) (import ./pkgs.nix { inherit lib; }).nginx
        ++ filter isAttrs commands
        ++ map (etc: etc.source) (attrValues config.environment.etc);
      # What /etc has of a package's files is a link, as on NixOS.
      links = mapAttrsToList (name: etc: "L+ /etc/${name} - - - - ${etc.source}") (
        lib.filterAttrs (_: etc: !isAttrs etc.source) config.environment.etc
      );
      preCheck = config.networking.nftables.preCheckRuleset;
    in
    if failed != [ ] then
      throw "host ${name}: ${(head failed).message}"
    else
      mapAttrs' (
        name: service:
        let
          place = if service.overrideStrategy == "asDropin" then "${name}.service.d/overrides.conf" else "${name}.service";
        in
        nameValuePair "/etc/systemd/system/${place}" (unit config.systemd.globalEnvironment service)
      ) services
      // listToAttrs (map mount config.systemd.mounts)
      // mapAttrs' (activation "Path" ".path" (path: path.pathConfig)) config.systemd.paths
      // mapAttrs' (activation "Timer" ".timer" (timer: timer.timerConfig)) config.systemd.timers
      // mergeAttrsList (map packageFiles packages)
      # systemd reads these before there could be a link.
      // mapAttrs' (name: etc: nameValuePair "/etc/${name}" etc.source.text) (
        lib.filterAttrs (_: etc: etc.source ? text) config.environment.etc
      )
      // optionalAttrs (config.environment.etc ? "opencode-egress/policy.json") {
        "/etc/opencode-egress/policy.json" =
          config.environment.etc."opencode-egress/policy.json".source.policy + "\n";
      }
      // optionalAttrs (preCheck != "") {
        # What the build does to a copy of the rules before it checks them.
        "/etc/nftables-pre-check" = "#!/bin/sh\nset -eu\n${preCheck}";
      }
      // {
        # As enabling them does.
        "/etc/systemd/system/multi-user.target.d/wants.conf" = "[Unit]\nWants=${toString enabledUnits}\n";
        # Tables name users. On NixOS these are there before systemd is.
        "/etc/systemd/system/nftables.service.d/users.conf" = "[Unit]\nAfter=systemd-sysusers.service\n";
        "/etc/tmpfiles.d/opencode.conf" = concatMapStrings (line: line + "\n") (
          links ++ config.systemd.tmpfiles.rules
        );
        "/etc/sysusers.d/opencode.conf" = users config;
      };
in
mapAttrs host hosts
