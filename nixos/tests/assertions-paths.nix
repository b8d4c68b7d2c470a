# What is mounted lies nowhere that an agent may change: each pair once so and once not.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) fails;
  ro = path: host.one { sandbox.readOnlyPaths = [ path ]; };
  mount = setting: text: host.one { sandbox.extraConfig.${setting} = text; };
  refused = config: lib.filter (lib.hasInfix "an agent may change") (host.failures config) != [ ];
in
{
  "a path inside the directory" =
    fails (ro "/srv/a/vendor/ref")
      [ "instances.a.sandbox.readOnlyPaths: /srv/a/vendor/ref" "instances.a.directory (/srv/a)" "link" "ReadOnlyPaths" ]
      (ro "/srv/ab/vendor");
  "the directory inside another instance's" =
    fails (host.two { directory = "/srv/b/sub"; } { })
      [ "instances.a.directory: /srv/b/sub" "instances.b.directory (/srv/b)" "Set them apart" ]
      (host.two { directory = "/srv/sub"; } { });
  "the directory inside a path of its own" =
    fails (host.one {
      directory = "/srv/mono/a";
      sandbox.readWritePaths = [ "/srv/mono" ];
    })
      [ "instances.a.directory: /srv/mono/a" "instances.a.sandbox.readWritePaths (/srv/mono)" "make it the `directory`" ]
      (host.one { sandbox.readWritePaths = [ "/srv/mono" ]; });
  "the same place twice" = {
    got = map refused [
      (ro "/srv/a")
      (host.two { directory = "/srv/x"; } { directory = "/srv/x"; })
      (host.two { sandbox.readOnlyPaths = [ "/srv/b" ]; } { })
    ];
    expected = lib.replicate 3 false;
  };
  "around a place" = {
    got = refused (host.two { sandbox.readOnlyPaths = [ "/srv" ]; } { });
    expected = false;
  };
  "every kind of path that is mounted" = {
    got = map (settings: refused (host.one settings)) [
      { sandbox.readWritePaths = [ "/srv/a/x" ]; }
      { sandbox.unixSockets.allow = [ "/srv/a/x.sock" ]; }
      { sandbox.readOnlyPaths = [ "/var/lib/opencode/instance-state/a/.ssh" ]; }
      { configFile = "/srv/a/opencode.json"; }
      { agents.x = "/srv/a/x.md"; }
      { commands.x = "/srv/a/x.md"; }
      { skills.x = "/srv/a/skills/x"; }
      { skills.x = "/srv/skills/x"; }
      { skills.x = "Do as /srv/a/x says."; }
    ];
    expected = lib.replicate 7 true ++ lib.replicate 2 false;
  };
  "a declared file where another agent writes" =
    fails (host.two { agents.x = "/srv/b/x.md"; } { })
      [ "instances.a.agents.x: /srv/b/x.md" "instances.b.directory" ]
      (host.two { agents.x = "/srv/x.md"; } { });
  "a mount of one's own" = {
    got = map refused [
      (mount "BindReadOnlyPaths" "/srv/a/x:/x")
      (mount "BindReadOnlyPaths" "-/srv/a/x:/x")
      (mount "BindPaths" "/srv/x /srv/a/x")
      (mount "BindReadOnlyPaths" "/srv/x:/x")
      (host.one { sandbox = { readOnlyPaths = [ "/srv/x/y" ]; extraConfig.BindPaths = "/srv/x:/z"; }; })
    ];
    expected = [
      true
      true
      true
      false
      true
    ];
  };
  "a mount at a place inside the directory" =
    fails (mount "BindReadOnlyPaths" "/srv/x:/srv/a/x")
      [ "instances.a.sandbox.extraConfig.BindReadOnlyPaths" "the mount at /srv/a/x" "link" "destination" ]
      (mount "BindReadOnlyPaths" "/srv/x:/srv/a");
}
