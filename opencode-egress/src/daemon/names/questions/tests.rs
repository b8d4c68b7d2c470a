use super::*;
use crate::report::caller::Caller;

const LIMITS: LogLimits = LogLimits { interval: Duration::from_secs(10), burst: 3, per_sec: 1 };

fn refuse(questions: &mut Questions, name: &str, now: Instant) -> Option<String> {
    let reason = QueryReason::NameNotAllowed;
    let question = Question { name: name.to_owned(), qtype: "A".to_owned(), reason, address: None };
    let asker = Asker { pid: 7, comm: "curl".to_owned(), uid: Some(987), caller: Caller::default() };
    let line = questions.refuse(question, || Some(asker.clone()), (&LIMITS, Mode::Enforce, now));
    line.map(|line| line.to_string())
}

#[test]
fn the_first_is_told_at_once_and_repeats_with_the_next_line() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    let first =
        "query=evil.example type=A reason=name-not-allowed pid=7 comm=curl uid=987 suppressed=0 exe=- via=-";
    assert_eq!(refuse(&mut questions, "evil.example", begin).as_deref(), Some(first));
    for _ in 0..5 {
        assert_eq!(refuse(&mut questions, "evil.example", begin), None);
    }
    let later = begin + Duration::from_secs(11);
    assert_eq!(questions.due(&LIMITS, Mode::Enforce, begin), []);
    let due = questions.due(&LIMITS, Mode::Audit, later);
    assert_eq!(due.len(), 1);
    assert!(due[0].to_string().ends_with("suppressed=4 exe=- via=- mode=audit"), "{}", due[0]);
    assert_eq!(questions.unlisted(), BTreeMap::from([("evil.example".to_owned(), 6)]));
}

#[test]
fn more_lines_than_the_limits_let_through_are_counted() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    let told =
        (0..10).filter(|number| refuse(&mut questions, &format!("n{number}.example"), begin).is_some());
    assert_eq!(told.count(), 3);
    assert_eq!(questions.status().limited, 7);
    assert!(refuse(&mut questions, "later.example", begin + Duration::from_secs(2)).is_some());
}

#[test]
fn repeats_of_what_is_over_the_rate_have_no_lines_either() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    for _ in 0..2 {
        for number in 0..1000 {
            refuse(&mut questions, &format!("n{number}.example"), begin);
        }
    }
    let due = questions.due(&LIMITS, Mode::Enforce, begin + LIMITS.interval);
    assert_eq!((due.len(), questions.status().limited), (3, 997 * 2));
}

#[test]
fn lines_at_the_end_of_an_interval_are_within_the_rate_too() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    // Six that have a line each, as the rate lets them.
    for number in 0..6 {
        let now = begin + Duration::from_secs(number);
        for _ in 0..3 {
            refuse(&mut questions, &format!("n{number}.example"), now);
        }
    }
    let due = questions.due(&LIMITS, Mode::Enforce, begin + Duration::from_secs(20));
    assert_eq!(due.len(), 3);
    assert_eq!(questions.left_out(), LeftOut { limited: 3 * 2, lost: 0 });
    // With the six lines, each of which stands for one: all.
    assert_eq!(questions.shown(), Shown { total: 18, folded: 3, limited: 6, lost: 0 });
}

#[test]
fn what_has_no_line_is_told_once() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    for number in 0..10 {
        refuse(&mut questions, &format!("n{number}.example"), begin);
    }
    questions.add(&Counts { lost: 4, ..Counts::default() });
    assert_eq!(questions.left_out(), LeftOut { limited: 7, lost: 4 });
    questions.tell_left_out();
    assert_eq!(questions.left_out(), LeftOut::default());
    refuse(&mut questions, "n9.example", begin);
    questions.lose();
    assert_eq!(questions.left_out(), LeftOut { limited: 1, lost: 1 });
    assert_eq!(questions.status().limited, 8);
}

#[test]
fn addresses_that_a_name_may_not_bring_are_remembered_once_each() {
    let (mut questions, now) = (Questions::default(), Instant::now());
    let name: DnsName = "db.corp.example".parse().expect("a name");
    for address in [[10, 0, 0, 8], [10, 0, 0, 7], [10, 0, 0, 8]] {
        let question = Question::forbidden(&name, &[address.into()]).expect("a question");
        questions.refuse(question, || None, (&LIMITS, Mode::Enforce, now));
    }
    refuse(&mut questions, "db.corp.example", now);
    assert_eq!(questions.forbidden(&name), [IpAddr::from([10, 0, 0, 7]), [10, 0, 0, 8].into()]);
    assert_eq!(questions.forbidden(&"corp.example".parse().expect("a name")), Vec::<IpAddr>::new());
}

#[test]
fn there_is_an_end_to_what_is_remembered() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    for number in 0..2000 {
        refuse(&mut questions, &format!("n{number}.example"), begin);
    }
    assert_eq!(questions.unlisted.len(), MOST);
}

/// Whoever has a listed zone chooses the addresses in it, and for how many names it has them.
#[test]
fn answers_of_a_listed_zone_neither_take_the_log_nor_what_suggest_knows() {
    let (mut questions, begin) = (Questions::default(), Instant::now());
    for number in 0..10 {
        refuse(&mut questions, &format!("n{number}.example"), begin);
    }
    let mut lines = 0;
    for zone in 0..2000 {
        let mut addresses: Vec<IpAddr> = (0..1000)
            .map(|low: u16| {
                let [high, low] = low.to_be_bytes();
                [10, 0, high, low].into()
            })
            .collect();
        addresses.rotate_left(zone % 1000);
        let name = format!("a{}.example.net", zone / 2).parse().expect("a name");
        let question = Question::forbidden(&name, &addresses).expect("a question");
        assert_eq!((question.qtype.as_str(), question.address), ("A", Some([10, 0, 0, 0].into())));
        let now = begin + Duration::from_secs(5);
        lines += u32::from(questions.refuse(question, || None, (&LIMITS, Mode::Enforce, now)).is_some());
    }
    assert_eq!(lines, LIMITS.burst);
    assert_eq!(questions.unlisted().len(), 10);
    assert_eq!(questions.status().refused_by_reason["forbidden-address"], 2000);
    assert_eq!(questions.others.len(), 1000, "addresses that took turns are the same question");
    assert_eq!(Question::forbidden(&"a.example.net".parse().expect("a name"), &[]), None);
}
