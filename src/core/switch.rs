//! The `VIVACE_*` variables that ask for another way to do the same, to test and to compare (`kernels/README.md`).

use super::Result;

/// What the environment variable `name` asks for; `takes` says what that may be.
pub(crate) fn asked<T>(name: &str, parse: fn(&str) -> Option<T>, takes: &str) -> Result<Option<T>> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => match parse(&text) {
            None => crate::bail_input!("{name} is {text:?}; it takes {takes}"),
            wanted => Ok(wanted),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_nobody_takes_is_an_error_that_names_the_switch() {
        let number = |text: &str| text.parse::<u32>().ok();
        assert_eq!(asked("VIVACE_A_SWITCH_THAT_NOBODY_SETS", number, "a number").unwrap(), None);
        // One that is set everywhere, and is no number.
        let message = asked("PATH", number, "a number").unwrap_err().to_string();
        assert!(message.contains("PATH is ") && message.contains("it takes a number"), "{message}");
        assert!(asked("PATH", |text| Some(text.len()), "").unwrap().is_some_and(|len| len > 0));
    }
}
