//! Reading tables of a damaged file along their keys: behind what cannot be read, the read goes on
//! at the next key.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

/// Most times that the read of one table continues behind damage.
const ROUNDS_MAX: usize = 100_000;

/// A table and its keys.
pub(super) struct Table {
    pub(super) name: String,
    /// Name and declared type.
    columns: Vec<(String, String)>,
    /// Columns of the key; empty: the row id.
    key: Vec<(String, String)>,
}

/// All tables, in the order in which they are to be read.
pub(super) fn tables(db: &Connection) -> rusqlite::Result<Vec<Table>> {
    let mut list =
        db.prepare("SELECT name, wr FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND schema = 'main'")?;
    let list: Vec<(String, bool)> =
        list.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for (name, without_rowid) in list {
        let mut statement =
            db.prepare("SELECT name, type, pk FROM pragma_table_info(?1) ORDER BY cid")?;
        let columns: Vec<(String, String, i64)> = statement
            .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let mut key: Vec<(i64, String, String)> = columns
            .iter()
            .filter(|(_, _, pk)| without_rowid && *pk > 0)
            .map(|(name, kind, pk)| (*pk, name.clone(), kind.clone()))
            .collect();
        key.sort();
        let key = key.into_iter().map(|(_, name, kind)| (name, kind)).collect();
        all.push(Table {
            name,
            columns: columns.into_iter().map(|(name, kind, _)| (name, kind)).collect(),
            key,
        });
    }
    // Tables that others are tidied by come first.
    all.sort_by_key(|table| (!table.key.is_empty(), table.name.clone()));
    Ok(all)
}

/// A damaged page may give values that never were: each has the type of its column.
pub(super) fn drop_nonsense(db: &Connection, table: &Table) -> rusqlite::Result<()> {
    for (column, kind) in &table.columns {
        let kind = match kind.as_str() {
            "INTEGER" => "integer",
            "TEXT" => "text",
            _ => continue,
        };
        db.execute(
            &format!("DELETE FROM {} WHERE typeof({column}) NOT IN ('{kind}', 'null')", table.name),
            [],
        )?;
    }
    Ok(())
}

impl Table {
    /// Copies what can be read of it; true: not all could. Errors are those of the target.
    pub(super) fn copy(
        &self,
        source: &Connection,
        target: &Connection,
        hints: &str,
    ) -> rusqlite::Result<bool> {
        let mut reader = Reader { source, target, table: self, gap: false };
        reader.table(hints)?;
        Ok(reader.gap)
    }
}

/// The copy of one table, under way.
struct Reader<'a> {
    source: &'a Connection,
    target: &'a Connection,
    table: &'a Table,
    gap: bool,
}

impl Reader<'_> {
    /// Errors are those of the target; what the source does not give is a gap.
    fn table(&mut self, hints: &str) -> rusqlite::Result<()> {
        match self.table.key.as_slice() {
            [] => self.numbers(None, "rowid"),
            [(first, kind), ..] if kind == "INTEGER" => self.numbers(None, &first.clone()),
            [(first, _), (second, kind), ..] if kind == "INTEGER" => {
                let (first, second) = (first.clone(), second.clone());
                let mut names = self.first_parts(&first);
                let mut statement = self.target.prepare(hints)?;
                names.extend(
                    statement.query_map([], |row| row.get::<_, String>(0))?.filter_map(Result::ok),
                );
                names.sort();
                names.dedup();
                names.iter().try_for_each(|name| self.numbers(Some((&first, name)), &second))
            }
            [(first, _), ..] => self.texts(&first.clone()),
        }
    }

    /// Copies rows of one query until its end or until a page cannot be read: the last key, and
    /// whether it came to the end.
    fn copy(
        &mut self,
        rest: &str,
        values: &[Value],
        key: &str,
    ) -> rusqlite::Result<(Option<Value>, bool)> {
        let names: Vec<&str> = self.table.columns.iter().map(|(name, _)| name.as_str()).collect();
        let (list, count) = (names.join(", "), names.len());
        let marks: Vec<String> = (1..=count).map(|at| format!("?{at}")).collect();
        let insert = format!(
            "INSERT OR IGNORE INTO {} ({list}) VALUES ({})",
            self.table.name,
            marks.join(", ")
        );
        let mut insert = self.target.prepare_cached(&insert)?;
        let mut last = None;
        let Ok(mut statement) = self
            .source
            .prepare(&format!("SELECT {list}, {key} FROM {} NOT INDEXED {rest}", self.table.name))
        else {
            return Ok((last, false));
        };
        let Ok(mut rows) = statement.query(params_from_iter(values)) else {
            return Ok((last, false));
        };
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let cells: rusqlite::Result<Vec<Value>> =
                        (0..count).map(|at| row.get(at)).collect();
                    let Ok(here) = row.get::<_, Value>(count) else { return Ok((last, false)) };
                    // Keys come in order, or they come from a damaged page; one that leads to
                    // itself would never end.
                    if !last
                        .as_ref()
                        .is_none_or(|last| comes_behind(last, &here, rest.ends_with("DESC")))
                    {
                        return Ok((last, false));
                    }
                    last = Some(here);
                    match cells.map(|cells| insert.execute(params_from_iter(cells))) {
                        Ok(Err(error))
                            if error.sqlite_error_code()
                                != Some(rusqlite::ErrorCode::ConstraintViolation) =>
                        {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                Ok(None) => return Ok((last, true)),
                Err(_) => return Ok((last, false)),
            }
        }
    }

    /// Along a key of numbers, all of it or below one first part.
    fn numbers(&mut self, prefix: Option<(&str, &str)>, key: &str) -> rusqlite::Result<()> {
        let condition = prefix.map(|(column, _)| format!("{column} = ?2 AND ")).unwrap_or_default();
        let values = |after: i64| -> Vec<Value> {
            std::iter::once(Value::Integer(after))
                .chain(prefix.map(|(_, name)| Value::Text(name.into())))
                .collect()
        };
        let mut after = i64::MIN;
        for _ in 0..ROUNDS_MAX {
            let rest = format!("WHERE {condition}{key} > ?1 ORDER BY {key}");
            let (last, ended) = self.copy(&rest, &values(after), key)?;
            if ended {
                return Ok(());
            }
            self.gap = true;
            if let Some(Value::Integer(last)) = last {
                after = after.max(last);
            }
            // Ids are positive; the next key that can be reached is looked for in growing steps,
            // then exactly.
            let base = after.max(0);
            let probe = |at: i64| {
                let sql = format!(
                    "SELECT {key} FROM {} NOT INDEXED WHERE {condition}{key} > ?1 ORDER BY {key} LIMIT 1",
                    self.table.name
                );
                let mut statement = self.source.prepare(&sql)?;
                let mut rows = statement.query(params_from_iter(values(at)))?;
                let next = rows.next()?.map(|row| row.get::<_, i64>(0)).transpose()?;
                // A key that is not where it must be comes from a damaged page.
                if next.is_some_and(|next| next <= at) {
                    Err(rusqlite::Error::InvalidQuery)
                } else {
                    Ok(next)
                }
            };
            if let Ok(Some(next)) = probe(base) {
                after = next; // its key can be read, the rest of that row cannot
                continue;
            }
            let reach = (0..62)
                .filter_map(|power| base.checked_add(1 << power))
                .find(|at| probe(*at).is_ok());
            let Some(mut high) = reach else { return Ok(()) };
            let mut low = base;
            while low + 1 < high {
                let middle = low + (high - low) / 2;
                if probe(middle).is_ok() { high = middle } else { low = middle }
            }
            if high <= after {
                return Ok(());
            }
            after = high;
        }
        Ok(())
    }

    /// Along a key of texts, from both ends.
    fn texts(&mut self, key: &str) -> rusqlite::Result<()> {
        let mut after = String::new();
        for _ in 0..ROUNDS_MAX {
            let (last, ended) = self.copy(
                &format!("WHERE {key} > ?1 ORDER BY {key}"),
                &[Value::Text(after.clone())],
                key,
            )?;
            if ended {
                break;
            }
            self.gap = true;
            if let Some(Value::Text(last)) = last {
                after = after.max(last);
            }
            let sql = format!(
                "SELECT {key} FROM {} NOT INDEXED WHERE {key} > ?1 ORDER BY {key} LIMIT 1",
                self.table.name
            );
            match steps(&after).into_iter().find(|at| self.reads(&sql, at)) {
                Some(next) => after = next,
                None => break,
            }
        }
        if self.gap {
            self.copy(
                &format!("WHERE {key} >= ?1 ORDER BY {key} DESC"),
                &[Value::Text(String::new())],
                key,
            )?;
        }
        Ok(())
    }

    fn reads(&self, sql: &str, at: &str) -> bool {
        let look = || -> rusqlite::Result<()> {
            self.source.prepare(sql)?.query([at])?.next().map(|_| ())
        };
        look().is_ok()
    }

    /// The first parts of a key that can be read.
    fn first_parts(&mut self, column: &str) -> Vec<String> {
        let sql = format!(
            "SELECT {column} FROM {} NOT INDEXED WHERE {column} > ?1 ORDER BY {column} LIMIT 1",
            self.table.name
        );
        let next = |after: &str| -> rusqlite::Result<Option<String>> {
            let mut statement = self.source.prepare(&sql)?;
            let mut rows = statement.query([after])?;
            rows.next()?.map(|row| row.get(0)).transpose()
        };
        let (mut found, mut after) = (Vec::new(), String::new());
        for _ in 0..ROUNDS_MAX {
            match next(&after) {
                Ok(Some(name)) if name > after => {
                    after.clone_from(&name);
                    found.push(name);
                }
                Ok(None) => return found,
                _ => match steps(&after).into_iter().find(|at| self.reads(&sql, at)) {
                    Some(at) => after = at,
                    None => return found,
                },
            }
        }
        found
    }
}

fn comes_behind(last: &Value, here: &Value, falling: bool) -> bool {
    let (low, high) = if falling { (here, last) } else { (last, here) };
    match (low, high) {
        (Value::Integer(low), Value::Integer(high)) => low < high,
        (Value::Text(low), Value::Text(high)) => low < high,
        _ => false,
    }
}

/// Places behind a text from which a read may go on: the next second characters, then the next
/// first ones.
pub(super) fn steps(after: &str) -> Vec<String> {
    let mut chars = after.chars().chain(std::iter::repeat('\u{1f}'));
    let (first, second) = (chars.next().unwrap_or('\u{1f}'), chars.next().unwrap_or('\u{1f}'));
    let behind = |c: char| (' '..='~').filter(move |next| *next > c);
    let seconds = behind(second).map(|next| format!("{first}{next}"));
    let firsts = behind(first).flat_map(|next| {
        std::iter::once(next.to_string())
            .chain((' '..='~').map(move |more| format!("{next}{more}")))
    });
    seconds.filter(|_| !after.is_empty()).chain(firsts).collect()
}
