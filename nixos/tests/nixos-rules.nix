# What NixOS itself refuses and adds, which the stub has to as well: tests on either mean the same.
{ lib, host }:
let
  inherit (lib) hasInfix hasSuffix;
  unit = settings: (host.config [ { systemd.services.x = settings; } ]).systemd.services.x;
  failures = module: host.failures (host.config [ module ]);
  user = settings: failures { users.users.bob = settings; };
  environment = (host.one { }).systemd.services.opencode-a.environment;
in
{
  "a unit's name has its kind" = {
    got = map (name: host.throws (unit { after = [ name ]; }).after) [
      "network.target"
      "opencode-größe.service"
      "a+b.service"
      "network"
    ];
    expected = [
      false
      true
      true
      true
    ];
  };
  "of some settings the values are known" = {
    got = map (settings: host.throws (unit { serviceConfig = settings; }).serviceConfig) [
      { Type = "exec"; }
      { Type = "execute"; }
      { Restart = lib.mkForce "sometimes"; }
      { Nice = "anything"; }
    ];
    expected = [
      false
      true
      true
      false
    ];
  };
  "a target that is gone is told of" = {
    got = map (hasInfix "network-interfaces.target") (failures {
      systemd.services.x.after = [ "network-interfaces.target" ];
    });
    expected = [ true ];
  };
  "a user is a person or a system's, and has a group that is there" = {
    got = map (settings: builtins.length (user settings)) [
      { isNormalUser = true; }
      {
        isSystemUser = true;
        group = "users";
      }
      { group = "users"; }
      { isSystemUser = true; }
      {
        isSystemUser = true;
        group = "nobodys";
      }
    ];
    expected = [
      0
      0
      1
      1
      1
    ];
  };
  "basic tools come after a unit's own" = {
    got =
      let
        path = map toString (unit { path = [ "/opt/one" ]; }).path;
      in
      {
        first = lib.head path;
        more = lib.length path;
        search = lib.hasPrefix "/opt/one/bin:" (unit { path = [ "/opt/one" ]; }).environment.PATH;
        none = (unit { enableDefaultPath = false; }).path;
      };
    expected = {
      first = "/opt/one";
      more = 6;
      search = true;
      none = [ ];
    };
  };
  # In the units' files, before what they say themselves.
  "every unit has the host's environment" = {
    got = lib.intersectAttrs {
      TZDIR = null;
      LOCALE_ARCHIVE = null;
    } (lib.mapAttrs (_: lib.isString) (host.one { }).systemd.globalEnvironment);
    expected = {
      TZDIR = true;
      LOCALE_ARCHIVE = true;
    };
  };
  "a server's PATH has bash, Git and ripgrep, and its shell is bash" = {
    got = {
      shell = hasSuffix "/bin/bash" environment.SHELL;
      path = lib.take 3 (lib.splitString ":" environment.PATH);
    };
    expected =
      let
        inherit (host.one { }) services;
        bins = lib.unique (map (package: "${package}/bin") services.opencode.instances.a.path);
      in
      {
        shell = true;
        path = lib.take 3 (bins ++ lib.drop (lib.length bins) (lib.splitString ":" environment.PATH));
      };
  };
  # Other tables of the host's stay as they are, unless it wants otherwise.
  "a reload of nftables flushes nothing else by itself" = {
    got = (host.one { }).networking.nftables.flushRuleset;
    expected = false;
  };
}
