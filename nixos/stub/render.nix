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
  # A list of units, or nothing.
  words = key: list: optionalAttrs (list != [ ]) { ${key} = concatStringsSep " " list; };

  searchPath = packages: concatMap (package: map (dir: "${package}/${dir}") [ "bin" "sbin" ]) packages;

  unit =
    service:
    let
      environment =
        optionalAttrs (service.path != [ ]) {
          PATH = concatStringsSep ":" (searchPath (map toString service.path));
        }
        // service.environment;
    in
    ''
      [Unit]
      ${settings (
        optionalAttrs (service.description != "") { Description = service.description; }
        // optionalAttrs (service.startLimitIntervalSec != null) {
          StartLimitIntervalSec = service.startLimitIntervalSec;
        }
        // words "Wants" service.wants
        // words "Requires" service.requires
        // words "After" service.after
        // words "Before" service.before
        // service.unitConfig
      )}
      [Service]
      ${concatStringsSep "" (
        mapAttrsToList (key: value: "Environment=${builtins.toJSON "${key}=${value}"}\n") environment
      )}${settings service.serviceConfig}
      ${optionalString (service.wantedBy != [ ]) "[Install]\n${settings (words "WantedBy" service.wantedBy)}"}'';

  nftables = name: table: ''
    table ${table.family} ${name} {
    ${lib.concatMapStringsSep "\n" (line: optionalString (line != "") "  ${line}") (
      lib.splitString "\n" table.content
    )}
    }
  '';

  # Files that a package stands for. A link is shown as what it points to.
  packageFiles =
    package:
    if package ? text then
      { ${package.outPath} = package.text; }
    else if package ? entries then
      listToAttrs (
        map (
          entry:
          nameValuePair "${package.outPath}/${entry.name}" (
            entry.path.text or (throw "${package.outPath}/${entry.name}: examples give texts, not paths")
          )
        ) package.entries
      )
    else
      { };

  users =
    config:
    concatMapStrings (name: "g ${name} -\n") (attrNames config.users.groups)
    + concatStringsSep "" (
      mapAttrsToList (
        name: user: "u ${name} -:${user.group} \"${user.description}\" ${user.home}\n"
      ) config.users.users
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
      enabledUnits = map (name: "${name}.service") (
        filter (name: lib.elem "multi-user.target" services.${name}.wantedBy) (attrNames services)
      );
      commands = concatMap (service: toList service.serviceConfig.ExecStart) (attrValues services);
      packages =
        filter isAttrs commands
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
      mapAttrs' (name: service: nameValuePair "/etc/systemd/system/${name}.service" (unit service)) services
      // mergeAttrsList (map packageFiles packages)
      // optionalAttrs (config.environment.etc ? "opencode-egress/policy.json") {
        "/etc/opencode-egress/policy.json" =
          config.environment.etc."opencode-egress/policy.json".source.environment.policy + "\n";
      }
      // mapAttrs' (
        name: table: nameValuePair "/etc/nftables.d/${name}.nft" (nftables name table)
      ) config.networking.nftables.tables
      // optionalAttrs (preCheck != "") {
        # What the build does to a copy of the rules before it checks them.
        "/etc/nftables-pre-check" = "#!/bin/sh\nset -eu\n${preCheck}";
      }
      // {
        # As enabling them does.
        "/etc/systemd/system/multi-user.target.d/wants.conf" = "[Unit]\n${settings (words "Wants" enabledUnits)}";
        # Tables name users. On NixOS these are there before systemd is.
        "/etc/systemd/system/nftables.service.d/users.conf" = "[Unit]\nAfter=systemd-sysusers.service\n";
        # Debian's nftables.service reads this.
        "/etc/nftables.conf" = ''
          #!/usr/sbin/nft -f
          flush ruleset
          include "/etc/nftables.d/*.nft"
        '';
        "/etc/tmpfiles.d/opencode.conf" = concatMapStrings (line: line + "\n") (
          links ++ config.systemd.tmpfiles.rules
        );
        "/etc/sysusers.d/opencode.conf" = users config;
      };
in
mapAttrs host hosts
