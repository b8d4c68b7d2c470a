# What is said when `systemd.services` changes the unit of an isolated instance.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) fails isolated warns;
  changed =
    unit: settings:
    host.config [
      (host.called "a" ({ directory = "/srv/a"; } // isolated { }))
      { systemd.services.${unit}.serviceConfig = settings; }
    ];
  free =
    settings:
    host.config [
      (host.called "a" { directory = "/srv/a"; })
      { systemd.services.opencode-a.serviceConfig = settings; }
    ];
  bad = unit: settings: host.failures (changed unit settings) != [ ];
in
{
  "another first command" =
    fails (changed "opencode-a" { ExecStartPre = lib.mkForce [ "/bin/other" ]; })
      [ "systemd.services.opencode-a.serviceConfig" "ExecStartPre" "lead round" "networkIsolation.enable" ]
      (changed "opencode-a" { ExecStartPre = [ "/bin/other" ]; });
  "another slice" =
    fails (changed "opencode-a" { Slice = "x.slice"; })
      [ "systemd.services.opencode-a.serviceConfig" "Slice" ]
      (free { Slice = "x.slice"; });
  "ways to lead round a policy, in every unit that has something of the instance's" = {
    got = map (settings: map (unit: bad unit settings) [ "opencode-a" "opencode-a-setup" "opencode-a-backup" ]) [
      { ExecStartPre = lib.mkForce [ ]; }
      { ExecStartPre = lib.mkOrder (-1) [ "/bin/first" ]; }
      { ExecStartPre = [ "+/bin/other" ]; }
      { ExecStartPost = "!/bin/other"; }
      { ExecCondition = "/bin/other"; }
      { Delegate = true; }
      { CapabilityBoundingSet = lib.mkForce "~"; }
      { RestrictAddressFamilies = [ "AF_NETLINK" ]; }
      { User = lib.mkForce "root"; }
      { BindPaths = [ "/srv/a/etc:/etc" ]; }
      { BindReadOnlyPaths = [ "/run/dbus" ]; }
      { "Slice " = "x.slice"; }
    ];
    expected = lib.replicate 12 [
      true
      true
      true
    ];
  };
  "what looks at the paths has nothing of it" = {
    got = bad "opencode-a-paths" { ExecStartPost = "+/bin/other"; };
    expected = false;
  };
  "what changes no policy" = {
    got = map (settings: bad "opencode-a" settings) [
      { Nice = 5; }
      { Restart = lib.mkForce "no"; }
      { ExecStartPre = [ "/bin/other" ]; }
      { ExecStartPost = "/bin/other"; }
      { BindReadOnlyPaths = [ "/srv/reference" ]; }
      { ProtectProc = lib.mkForce "default"; }
    ];
    expected = lib.replicate 6 false;
  };
  "a person's account" =
    warns (host.one (isolated { } // { user = "alice"; }))
      [ "instances.a.user" "`alice`" "everything" "system user" ]
      (host.one { user = "alice"; });
}
