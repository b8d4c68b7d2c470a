# What every agent may do: look. The last rule that matches decides, and an agent's own come after these.
let
  rule = action: tool: { inherit tool action; };
in
{
  services.opencode.instances.workshop.config.permission = [
    (rule "deny" "*")
  ]
  ++ map (rule "allow") [
    "glob"
    "grep"
    "list"
    "read"
  ]
  # After `read` itself.
  ++ map (pattern: rule "deny" "read" // { inherit pattern; }) [
    "*.env"
    "*.env.*"
    "*secrets*"
  ];
}
