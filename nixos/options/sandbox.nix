# What a server sees of the machine, besides its own directories.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) hostPath unitSetting;
in
{
  options.sandbox = {
    readWritePaths = mkOption {
      type = types.listOf hostPath;
      default = [ ];
      description = ''
        Files and directories that the server sees and may change, as far as {option}`user` may. They must exist. **Each is a way out for whatever
        the agent wants to leave there**, and a directory brings the sockets in it along. By one that another instance sees too, each can have the
        other do what its own policy denies.
      '';
    };

    readOnlyPaths = mkOption {
      type = types.listOf hostPath;
      default = [ ];
      example = [ "/srv/reference" ];
      description = ''
        Files and directories that the server sees, as far as {option}`user` may read them. They must exist, and not be inside what an agent may
        change. Sockets in them can be connected to all the same.
      '';
    };

    unixSockets.allow = mkOption {
      type = types.listOf hostPath;
      default = [ ];
      example = [ "/run/postgresql/.s.PGSQL.5432" ];
      description = ''
        Unix sockets that the server sees; it sees no others of the host. **Who answers there acts for the agent, and with its own network**: a socket of the
        Nix daemon, Docker, D-Bus or systemd would undo {option}`networkIsolation`, and is refused with it. When the socket
        is made anew the server must be restarted.
      '';
    };

    extraConfig = mkOption {
      type = types.attrsOf unitSetting;
      default = { };
      example = {
        MemoryDenyWriteExecute = true;
        ProtectProc = "default";
      };
      description = ''
        Settings of the server's `[Service]` section, each one line, that take precedence over the module's, for those who know {manpage}`systemd.exec(5)`. A
        list replaces the module's. **They can open the sandbox**, to sockets that have somebody else do the talking above all. They cannot take
        {option}`networkIsolation` away: with it, settings that run something before the policy is attached or with root's privileges (commands after
        `+` or `!`), that move the unit's cgroup or its network namespace, change its user, show it the host's root or images, put something in the
        place of the program that attaches the policy, or give it capabilities or sockets of other families are refused.
      '';
    };
  };
}
