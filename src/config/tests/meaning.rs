//! What single values mean: addresses that no machine has, no limit at all, intervals that follow another.

use super::super::{Config, ConfigDiff};

#[test]
fn what_is_wrong_on_every_machine_is_a_problem() {
    let file = |listener: &str, pool: &str| {
        format!("listeners: {{ web: {{ bind: {listener}, pool: web }} }}\npools: {{ web: {{ {pool} }} }}\n")
    };
    let plain = "backends: { a: 10.0.0.1:80 }";
    for (listener, pool, said) in [
        ("'[fe80::1]:80'", plain, Some("\"[fe80::1%2]:80\"")),
        ("'[fe80::1%2]:80'", plain, None),
        ("'[fe80::1%eth0]:80'", plain, Some("write the number that it has")),
        ("'224.0.0.1:80'", plain, Some("multicast")),
        ("'0.0.0.0:80'", plain, None),
        ("'127.0.0.1:80'", "backends: { a: '0.0.0.0:81' }", Some("write \"127.0.0.1:81\"")),
        ("'127.0.0.1:80'", "backends: { a: '[::]:81' }", Some("write \"[::1]:81\"")),
        ("'127.0.0.1:80'", "backends: { a: '[::ffff:0.0.0.0]:81' }", Some("stands for every address")),
        ("'127.0.0.1:80'", "backends: { a: '[fe80::1]:81' }", Some("\"[fe80::1%2]:81\"")),
        ("'127.0.0.1:80'", "backends: { a: '239.1.1.1:81' }", Some("multicast")),
        ("'127.0.0.1:80'", "backends: { a: '255.255.255.255:81' }", Some("broadcast")),
    ] {
        let parsed = Config::parse(file(listener, pool));
        match said {
            None => assert!(parsed.is_ok(), "{listener} {pool}: {parsed:?}"),
            Some(said) => {
                let problems = parsed.unwrap_err();
                assert!(problems.len() == 1 && problems[0].message.contains(said), "{listener} {pool}: {problems:?}");
            }
        }
    }
}

#[test]
fn no_limit_can_be_written() {
    let text = "
listeners: { web: { bind: 0.0.0.0:80, pool: web, idle_timeout: never, max_connections: unlimited } }
pools: { web: { backends: { a: { address: 10.0.0.1:80, max_connections: unlimited } } } }
";
    let config = Config::parse(text).unwrap();
    let listener = &config.listeners[&"web".parse().unwrap()];
    assert_eq!((listener.idle_timeout, listener.max_connections), (None, None));
    assert_eq!(config.pools[&"web".parse().unwrap()].backends[0].max_connections, None);
    let limited = Config::parse(text.replace("never, max_connections: unlimited", "5s, max_connections: 9")).unwrap();
    assert_eq!(
        ConfigDiff::between(&config, &limited).summary(),
        ["listener web: max_connections: unlimited → 9", "listener web: idle_timeout: never → 5s"]
    );
    for (wrong, said) in [
        (text.replace("never", "infinite"), "write never"),
        (text.replace("never", "0s"), "or write never"),
        (text.replacen("unlimited", "0", 1), "or unlimited"),
        (text.replacen("unlimited", "none", 1), "or unlimited"),
        (text.replacen("unlimited", "-7", 1), "or write unlimited"),
    ] {
        let problems = Config::parse(&wrong).unwrap_err();
        assert!(problems.len() == 1 && problems[0].message.contains(said), "{wrong}: {problems:?}");
    }
}

#[test]
fn intervals_that_follow_another_are_not_told_of() {
    let config = |check: &str| {
        Config::parse(format!(
            "listeners: {{ web: {{ bind: 0.0.0.0:80, pool: web }} }}\npools: {{ web: {{ backends: {{ a: 10.0.0.1:80 }}, health_check: {{ {check} }} }} }}"
        ))
        .unwrap()
    };
    for (old, new, told) in [
        ("interval: 2s", "interval: 4s", &["pool web: health_check.interval: 2s → 4s"][..]),
        (
            "interval: 2s",
            "interval: 2s, fast_interval: 1s",
            &["pool web: health_check.fast_interval: as interval → 1s"],
        ),
        ("fast_interval: 1s", "fast_interval: 500ms", &["pool web: health_check.fast_interval: 1s → 500ms"]),
    ] {
        assert_eq!(ConfigDiff::between(&config(old), &config(new)).summary(), told, "{old} {new}");
    }
}
