# A permission that asks, where nobody answers.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) warns;
  asked = config: host.one { inherit config; };
  none = config: (asked config).warnings;
in
{
  "in a set" =
    warns (asked { permission.bash = "ask"; })
      [ "instances.a" "`config.permission` (bash)" "for ever" "`deny`" "instances.a.attended" ]
      (asked { permission.bash = "deny"; });
  "in one of a tool's patterns" =
    warns
      (asked {
        permission.bash = {
          "*" = "allow";
          "git push*" = "ask";
        };
      })
      [ "`config.permission` (bash)" ]
      (asked { permission.bash."*" = "allow"; });
  "in a list, each tool once" =
    warns
      (asked {
        permission = [
          {
            tool = "edit";
            action = "ask";
          }
          {
            tool = "bash";
            action = "ask";
          }
          {
            tool = "bash";
            pattern = "ls";
            action = "allow";
          }
          {
            tool = "bash";
            pattern = "rm *";
            action = "ask";
          }
        ];
      })
      [ "(edit, bash)" ]
      (asked {
        permission = [
          {
            tool = "bash";
            action = "deny";
          }
        ];
      });
  "about everything" = warns (asked { permission = "ask"; }) [ "`config.permission` (*)" ] (
    asked { permission = "allow"; }
  );
  "of an agent" =
    warns
      (asked {
        agent.build.permission.edit = "ask";
        agent.plan.permission.edit = "deny";
      })
      [ "`config.agent.build.permission` (edit)" ]
      (asked { agent.build.steps = 3; });
  "of several" =
    warns
      (asked {
        permission.webfetch = "ask";
        mode.careful.permission = "ask";
      })
      [
        "`config.permission` (webfetch)"
        "`config.mode.careful.permission` (*)"
      ]
      (asked { permission.webfetch = "deny"; });
  "is what an instance that is attended is for" = {
    got =
      (host.one {
        attended = true;
        config.permission.bash = "ask";
      }).warnings;
    expected = [ ];
  };
  "is nobody's where there is no permission" = {
    got = none { };
    expected = [ ];
  };
  "in the defaults" = {
    got =
      map
        (
          attended:
          builtins.length
            (host.config [
              {
                services.opencode.defaults = {
                  inherit attended;
                  config.permission.bash = "ask";
                };
                services.opencode.instances.a.directory = "/srv/a";
              }
            ]).warnings
        )
        [
          false
          true
        ];
    expected = [
      1
      0
    ];
  };
}
