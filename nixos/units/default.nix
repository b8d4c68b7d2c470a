# The units of each instance, and the directories that must be there before them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    concatMapAttrs
    mapAttrs'
    mapAttrsToList
    nameValuePair
    ;
  instances = import ../instances.nix { inherit config lib; };
  told = import ../told.nix { inherit lib; };
  keyed = import ../keys/keyed.nix { inherit config lib; };
  filesOf =
    name: instance:
    import ./files.nix { inherit lib pkgs instances; } name (
      instance // { config = keyed.withProviders name instance; }
    );
  # Below /etc. Links in the state directory point here, so it must not change.
  etcName = name: "opencode-instances/${name}";

  # A set-up looks for the second lock, and with it its server: `networking.nftables` goes on when its reload fails, and so does a switch.
  hasTable = import ../egress/has-table.nix {
    inherit lib pkgs;
    inherit (import ../egress/nftables.nix { inherit config lib; }) mark;
  };

  units =
    name: instance:
    let
      files = filesOf name instance // {
        at = "/etc/${etcName name}";
      };
      common = import ./service.nix { inherit config lib pkgs; } { inherit name instance files; };
      arguments = {
        inherit
          name
          instance
          files
          common
          ;
        terminals = instances.terminals name;
      };
      setup = import ./setup.nix { inherit lib pkgs; } (
        arguments
        // {
          inherit hasTable;
          keyless = import ../keys/keyless.nix { inherit lib pkgs keyed; };
        }
      );
    in
    {
      ${instances.pathsUnit name} = import ./paths.nix { inherit config lib pkgs; } {
        inherit name instance;
      };
      ${instances.setupUnit name} = setup;
      ${instances.backupUnit name} = import ./backup.nix { inherit lib pkgs; } arguments;
      ${instances.serverUnit name} = import ./server.nix { inherit lib; } arguments // {
        # Changed scripts take effect when the system is switched.
        restartTriggers = setup.serviceConfig.ExecStart;
      };
    };
  # In what looks at the paths runs nothing of the instance's.
  own = concatMapAttrs (
    name: instance: removeAttrs (units name instance) [ (instances.pathsUnit name) ]
  ) instances.isolated;
in
{
  config = lib.mkIf config.services.opencode.enable {
    systemd.services =
      concatMapAttrs units instances.enabled
      // lib.optionalAttrs (instances.enabled != { }) {
        # systemd 257 and newer syncs a journal namespace whenever a unit of it starts: at the usual limit of five starts in ten seconds, two
        # quick restarts of a server kept it from starting.
        "systemd-journald-sync@" = {
          overrideStrategy = "asDropin";
          enableDefaultPath = false;
          unitConfig.StartLimitIntervalSec = 0;
        };
      };
    assertions = map (message: {
      assertion = false;
      inherit message;
    }) (lib.concatLists (mapAttrsToList (import ./changed.nix { inherit config lib; }) own));

    # The same directory that the units see, for those who look from outside.
    environment.etc =
      mapAttrs' (
        name: instance: nameValuePair (etcName name) { source = (filesOf name instance).package; }
      ) instances.enabled
      # What servers print: in a journal of their own, so that none pushes out what the host's has, of others' denials above all.
      // mapAttrs' (
        name: instance:
        nameValuePair "systemd/journald@${instances.logNamespace name}.conf" {
          source = pkgs.writeText "journald@${instances.logNamespace name}.conf" ''
            [Journal]
            SystemMaxUse=${toString instance.resources.journalMax}
            RuntimeMaxUse=${toString instance.resources.journalMax}
          '';
        }
      ) instances.enabled
      # What agents are told of their policies. No link, so that a unit that has its directory sees it change with the list.
      // mapAttrs' (
        name: instance:
        nameValuePair (lib.removePrefix "/etc/" (instances.told name)) {
          source = pkgs.writeText "opencode-${name}-network.md" (told instance.networkIsolation);
          mode = "0444";
        }
      ) (lib.filterAttrs (_: instances.tells) instances.enabled);

    # Pseudo-terminals of its own, of which it may have so many: the host has a limited number.
    systemd.mounts = mapAttrsToList (name: instance: {
      description = "Pseudo-terminals of the opencode server, instance ${name}";
      what = "devpts";
      type = "devpts";
      where = instances.terminals name;
      options = "max=${toString instance.resources.terminalsMax},mode=0600,ptmxmode=0666,nosuid,noexec";
    }) instances.enabled;

    systemd.tmpfiles.rules = [
      "d /var/lib/opencode 0755 root root -"
      "d /var/lib/opencode/instance-state 0755 root root -"
      "d /var/lib/opencode/backup 0700 root root -"
    ]
    ++ mapAttrsToList (
      _: instance: "d ${instance.stateDir} 0700 ${instance.user} ${instance.group} -"
    ) instances.enabled;
  };
}
