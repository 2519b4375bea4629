//! The base folder: sessions work in it or below it. Paths come with their links resolved, since a
//! link inside could lead out.

/// Whether an absolute path is the base or below it. Both are told with links resolved; `.` and
/// `..` that are left all the same lead nowhere.
pub fn is_within(base: &str, path: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<String>> {
        let parts: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
        let told: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let plain = told.iter().all(|part| *part != "." && *part != "..");
        plain.then(|| told.into_iter().map(str::to_string).collect())
    };
    match (parts(base), parts(path)) {
        (Some(base), Some(path)) => path.starts_with(&base),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_base_and_what_is_below_it_is_within() {
        for (base, path, want) in [
            ("/home/me", "/home/me", true),
            ("/home/me", "/home/me/", true),
            ("/home/me/", "/home/me/work", true),
            ("/home/me", "/home/me/..data", true),
            ("/home/me", "/home/mean", false),
            ("/home/me", "/home", false),
            ("/home/me", "/home/me/../you", false),
            ("/home/me", "work", false),
            ("/home/me", "", false),
            ("/", "/anything", true),
        ] {
            assert_eq!(is_within(base, path), want, "{path} in {base}");
        }
    }
}
