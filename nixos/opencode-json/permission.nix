# `permission`: rules of which the last that matches decides. Nix sorts attribute sets, so their order is that of a list.
{ lib, json }:
let
  inherit (lib)
    all
    concatMap
    filter
    findFirst
    hasPrefix
    head
    isList
    isString
    length
    removeSuffix
    types
    unique
    ;
  inherit (import ./types.nix { inherit lib; }) checked required;

  action = types.enum [
    "allow"
    "ask"
    "deny"
  ];

  rule = types.submodule {
    options = {
      tool = required types.str "Tool that the rule is for: a name, or a pattern such as `*` or `tickets_*`.";
      pattern = lib.mkOption {
        type = types.str;
        default = "*";
        description = "What the tool is used on: the shell's command, the file's path, the agent's name. `*` is anything, `?` one character.";
      };
      action = required action "Whether it is done, asked for, or refused.";
    };
  };

  # Tools that opencode takes an action for and no patterns.
  withoutPatterns = [
    "doom_loop"
    "question"
    "todowrite"
    "webfetch"
    "websearch"
  ];

  # Names of a set in an order that is the same whatever they are: the general one first.
  starFirst = set: lib.optional (set ? "*") "*" ++ filter (name: name != "*") (builtins.attrNames set);

  rules =
    permission:
    if isList permission then
      permission
    else
      concatMap (
        tool:
        let
          value = permission.${tool};
        in
        if isString value then
          [
            {
              inherit tool;
              pattern = "*";
              action = value;
            }
          ]
        else
          map (pattern: {
            inherit tool pattern;
            action = value.${pattern};
          }) (starFirst value)
      ) (starFirst permission);

  # Neighbours of the same tool, together: [ { tool, rules } ].
  groups = lib.foldl' (
    done: rule:
    if done != [ ] && (lib.last done).tool == rule.tool then
      lib.init done
      ++ [
        {
          inherit (rule) tool;
          rules = (lib.last done).rules ++ [ rule ];
        }
      ]
    else
      done
      ++ [
        {
          inherit (rule) tool;
          rules = [ rule ];
        }
      ]
  ) [ ];

  # Whether something may match both, judged by what comes before the first wildcard: it may say yes in vain, but not no.
  # `~` and `$HOME` become a path that is not known here, and a pattern that ends in ` *` also matches without it.
  overlap =
    a: b:
    let
      prefix = text: removeSuffix " " (head (builtins.split "[*?~$]" text));
      literal = text: prefix text == text;
    in
    if literal a && literal b then
      a == b
    else if literal a then
      hasPrefix (prefix b) a
    else if literal b then
      hasPrefix (prefix a) b
    else
      hasPrefix (prefix a) (prefix b) || hasPrefix (prefix b) (prefix a);

  # Two names of a set that may match the same, or null.
  ambiguous =
    names:
    let
      pairs = concatMap (a: map (b: { inherit a b; }) (filter (b: a < b && b != "*") names)) (
        filter (a: a != "*") names
      );
    in
    findFirst ({ a, b }: overlap a b) null pairs;

  duplicate = names: findFirst (name: length (filter (n: n == name) names) > 1) null (unique names);

  # JavaScript puts such keys first, wherever they stand.
  number = findFirst (name: builtins.match "0|[1-9][0-9]*" name != null) null;

  list = "the last match wins, and an attribute set has no order: write the rules as a list of { tool, pattern, action }";

  setProblem =
    where: set:
    let
      pair = ambiguous (builtins.attrNames set);
    in
    if pair == null then null else "`${pair.a}` and `${pair.b}`${where} may match the same thing; ${list}";

  firstProblem = findFirst (problem: problem != null) null;

  rulesProblem =
    permission:
    let
      grouped = groups (rules permission);
      tools = map (group: group.tool) grouped;
      apart = duplicate tools;
      inGroup =
        group:
        let
          patterns = map (rule: rule.pattern) group.rules;
          twice = duplicate patterns;
        in
        if twice != null then
          "two rules for ${group.tool} `${twice}`; the first has no effect: remove it"
        else if number patterns != null then
          "the pattern `${number patterns}` for ${group.tool} cannot keep its place, since JavaScript sorts whole numbers first; write `${number patterns}*`"
        else if builtins.elem group.tool withoutPatterns && patterns != [ "*" ] then
          "opencode takes no patterns for ${group.tool}, only an action"
        else
          null;
    in
    if apart != null then
      "the rules for ${apart} stand in two places, and opencode.json has only one for them: put them together"
    else if number tools != null then
      "`${number tools}` is no tool"
    else
      firstProblem (map inGroup grouped);
in
rec {
  # Null, or what is wrong with it.
  problem =
    permission:
    if isString permission then
      null
    else if isList permission then
      rulesProblem permission
    else
      firstProblem (
        [ (setProblem "" permission) ]
        ++ lib.mapAttrsToList (
          tool: value: if isString value then null else setProblem " under ${tool}" value
        ) permission
        ++ [ (rulesProblem permission) ]
      );

  type = checked (types.oneOf [
    action
    (types.listOf rule)
    (types.attrsOf (types.either action (types.attrsOf action)))
  ]) problem;

  description = ''
    What agents may do without being asked. One action for everything; or a list of rules, of which **the last that
    matches** decides; or an attribute set of tool to action, or of tool to pattern to action, where order does not
    matter: `*` comes first in it, and names that could match the same thing are refused. Without any rule nearly everything is
    allowed. This guards against accidents; what confines an agent is its unit.
  '';

  # The tools that it asks about.
  asked =
    permission:
    if permission == null then
      [ ]
    else if isString permission then
      lib.optional (permission == "ask") "*"
    else
      unique (map (rule: rule.tool) (filter (rule: rule.action == "ask") (rules permission)));

  # The object for opencode.json, in order.
  render =
    permission:
    if permission == null || isString permission then
      permission
    else
      json.ordered (
        map (group: {
          name = group.tool;
          value =
            if all (rule: rule.pattern == "*") group.rules then
              (head group.rules).action
            else
              json.ordered (
                map (rule: {
                  name = rule.pattern;
                  value = rule.action;
                }) group.rules
              );
        }) (groups (rules permission))
      );
}
